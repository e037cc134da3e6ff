"""IndexStream: every index once, whatever the workers and ranks."""

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from attn.shared_eval.data import IndexStream


def double(index):
    return torch.tensor(2 * index)


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_see_disjoint_indices_that_make_the_whole(workers):
    shares = []
    for rank in range(3):
        stream = IndexStream(double, start=5, stop=32, rank=rank, world_size=3)
        shares.append([int(x) for x in DataLoader(stream, batch_size=None, num_workers=workers)])
    assert shares == [[2 * i for i in range(5 + rank, 32, 3)] for rank in range(3)]


def test_it_is_endless_and_resumes_where_it_stopped():
    first = list(islice(IndexStream(double), 10))
    assert [*islice(IndexStream(double), 4), *islice(IndexStream(double, start=4), 6)] == first == list(range(0, 20, 2))
    assert list(islice(IndexStream(double, rank=1, world_size=3), 3)) == [2, 8, 14]


def test_it_asks_torch_distributed_for_its_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert list(IndexStream(double, stop=3)) == [0, 2, 4]
    finally:
        torch.distributed.destroy_process_group()


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="rank and world_size must be given together, got 1 and None"):
        IndexStream(double, rank=1)
    with pytest.raises(ValueError, match=r"rank must lie in 0 .. 1, got 2"):
        IndexStream(double, rank=2, world_size=2)
