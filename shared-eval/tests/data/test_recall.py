"""packed_recall by its definition, token by token, and by its golden hash."""

from hashlib import sha256

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from attn.shared_eval.data import PackedRecallDataset, packed_recall

TASK = {"pairs": 20, "queries": 20, "keys": 20, "values": 20}
GOLDEN = {
    "hedgehog": "8721cfab4ca6822453524ce2cb2683fe6c866cbe44d54dedf08aca941ab419c9",
    "other": "34091b710361c5f8eeb435e6c120d12e71091abfcad61d63f3490b858f9054c9",
}


def digest(tensors):
    return sha256(b"".join(x.numpy().astype("<i8").tobytes() for x in tensors)).hexdigest()


def test_golden_hash():
    assert digest(packed_recall(64, **TASK)) == GOLDEN["hedgehog"]
    other = packed_recall(7, pairs=8, queries=3, keys=300, values=70, gap=5, split="val", seed=3, index=2**40)
    assert digest(other) == GOLDEN["other"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_query_is_answered_by_its_evidence(data):
    keys, values, gap = (data.draw(st.integers(low, 40)) for low in (1, 1, 0))
    pairs = data.draw(st.integers(1, keys))
    queries = data.draw(st.integers(1, pairs))
    seed, index = data.draw(st.integers(0, 100)), data.draw(st.integers(0, 2**40))
    task = packed_recall(3, pairs=pairs, queries=queries, keys=keys, values=values, gap=gap, seed=seed, index=index)

    for key_ids, value_ids, labels, evidence in zip(*(x.tolist() for x in task), strict=True):
        assert len(key_ids) == len(value_ids) == len(labels) == len(evidence) == pairs + gap + queries
        known = dict(zip(key_ids[:pairs], value_ids[:pairs], strict=True))
        assert len(known) == pairs
        assert all(0 <= key < keys and 0 <= value < values for key, value in known.items())
        assert key_ids[pairs : pairs + gap] == [keys] * gap
        assert value_ids[pairs:] == [values] * (gap + queries)
        assert labels[: pairs + gap] == [-100] * (pairs + gap)
        assert evidence[: pairs + gap] == [-1] * (pairs + gap)
        asked = key_ids[pairs + gap :]
        assert len(set(asked)) == queries
        assert labels[pairs + gap :] == [known[key] for key in asked]
        assert [key_ids[position] for position in evidence[pairs + gap :]] == asked


@pytest.mark.parametrize("pairs", [1, 2, 3, 5])  # words of a row: a multiple of four, or not
def test_an_example_does_not_depend_on_its_batch(pairs):
    task = {"pairs": pairs, "queries": 1, "keys": 6, "values": 9, "seed": 5}
    together = packed_recall(10, index=7, **task)
    for row in range(10):
        alone = packed_recall(1, index=7 + row, **task)
        assert all(torch.equal(x[row], y[0]) for x, y in zip(together, alone, strict=True))


def test_keys_values_and_queries_are_uniform_and_independent():
    task = packed_recall(20_000, pairs=2, queries=1, keys=3, values=2)
    key, values, asked = task.key_ids[:, 0], task.value_ids[:, :2], task.evidence[:, -1]
    cells = ((key * 2 + values[:, 0]) * 2 + values[:, 1]) * 2 + asked
    shares = torch.bincount(cells, minlength=24) / len(cells)
    torch.testing.assert_close(shares, torch.full((24,), 1 / 24), atol=0.008, rtol=0)


def test_seeds_splits_and_indices_give_other_examples():
    examples = [
        packed_recall(1, **TASK, split=split, seed=seed, index=index)
        for split in ("train", "val")
        for seed in (0, 1)
        for index in (0, 1)
    ]
    assert len({digest(example) for example in examples}) == len(examples)


def test_the_data_set_loads_batches_in_any_number_of_workers():
    dataset = PackedRecallDataset(6, 4, **TASK)
    whole = packed_recall(24, **TASK)
    for workers in (0, 2):
        loaded = list(DataLoader(dataset, batch_size=None, num_workers=workers))
        assert len(loaded) == len(dataset) == 6
        assert all(torch.equal(torch.cat(x), y) for x, y in zip(zip(*loaded, strict=True), whole, strict=True))
        assert loaded[0].key_ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"pairs": 21}, "pairs must be at least 1 and at most 20, got 21"),
        ({"queries": 0}, "queries must be at least 1 and at most 20, got 0"),
        ({"keys": 2**16 + 1}, "keys must be at least 1 and at most 65536, got 65537"),
        ({"values": 0}, "values must be at least 1 and at most 65536, got 0"),
        ({"gap": -1}, "gap must be at least 0, got -1"),
        ({"index": -1}, "index must be at least 0, got -1"),
    ],
)
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        packed_recall(**{"batch": 1, **TASK, **change})


def test_a_data_set_refuses_bad_sizes_at_once():
    with pytest.raises(ValueError, match="pairs must be at least 1 and at most 20, got 30"):
        PackedRecallDataset(1, 1, **(TASK | {"pairs": 30}))
    with pytest.raises(IndexError, match=r"item must lie in 0 .. 1, got 2"):
        PackedRecallDataset(2, 1, **TASK)[2]
