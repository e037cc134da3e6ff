"""Items drawn by index as a stream, shared out over workers and ranks."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeVar

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

T = TypeVar("T")


class IndexStream(IterableDataset[T]):
    """The items ``item(start), item(start + 1), ...``, each read by exactly one worker of one rank.

    A rank gets every ``world_size``-th index, in order and whatever the number of its workers, so that a run is resumed
    by starting at the first index that it has not seen.

    Args:
        item: draws an item from its index; must be picklable where workers are spawned.
        start: the first index.
        stop: the index to stop before; None for an endless stream.
        rank, world_size: this process's share; None asks ``torch.distributed``, and takes everything where that is
            not initialized.

    Raises:
        ValueError: if only one of rank and world_size is given, or rank is not below world_size.
    """

    def __init__(
        self,
        item: Callable[[int], T],
        *,
        start: int = 0,
        stop: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank and world_size must be given together, got {rank} and {world_size}")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0 .. {world_size - 1}, got {rank}")
        self.item, self.start, self.stop, self.rank, self.world_size = item, start, stop, rank, world_size

    def __iter__(self) -> Iterator[T]:
        rank, world_size = self.rank, self.world_size
        if rank is None or world_size is None:
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = torch.distributed.get_rank() if distributed else 0
            world_size = torch.distributed.get_world_size() if distributed else 1
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        first, step = self.start + rank + world_size * worker, world_size * workers
        indices = count(first, step) if self.stop is None else range(first, self.stop, step)
        return map(self.item, indices)
