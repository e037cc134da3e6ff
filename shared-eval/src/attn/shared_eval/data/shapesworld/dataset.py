"""Scenes as a torch data set, by index or as a stream."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from attn.shared_eval.data.shapesworld.families import World
from attn.shared_eval.data.shapesworld.renderer import Picture, render
from attn.shared_eval.data.stream import IndexStream

T = TypeVar("T")


def picture_tensors(picture: Picture) -> dict[str, Tensor]:
    """``image``, uint8 ``[3, size, size]``, ``labels``, uint8 ``[size, size]``, and ``index``, the scene's, int64."""
    return {
        "image": torch.from_numpy(picture.image.transpose(2, 0, 1).copy()),
        "labels": torch.from_numpy(picture.labels.copy()),
        "index": torch.tensor(picture.scene.index),
    }


class ScenesDataset(Dataset[T], Generic[T]):
    """The scenes ``0 .. count - 1`` of a split, drawn when they are asked for.

    Args:
        world: what `family` returned.
        split: one of ``train``, ``val``, ``test``, ``search``, ``verifier``.
        count: number of scenes.
        size: pixels along a side.
        item: makes an item of a picture, such as `picture_tensors`; must be picklable where workers are spawned.
        seed: which data set of that split.

    Raises:
        ValueError: if count is negative, or the split is unknown.
    """

    def __init__(
        self, world: World, split: str, count: int, *, size: int, item: Callable[[Picture], T], seed: int = 0
    ) -> None:
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}")
        world.scene(split, 0, seed=seed)  # refuses a bad split here rather than in a worker
        self.world, self.split, self.count, self.size, self.item, self.seed = world, split, count, size, item, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> T:
        if not 0 <= index < self.count:
            raise IndexError(f"index must lie in 0 .. {self.count - 1}, got {index}")
        return self._draw(index)

    def stream(self, *, start: int = 0, rank: int | None = None, world_size: int | None = None) -> IndexStream[T]:
        """Endless items from index ``start`` on, shared out over workers and ranks, see `IndexStream`."""
        return IndexStream(self._draw, start=start, rank=rank, world_size=world_size)

    def _draw(self, index: int) -> T:
        return self.item(render(self.world.scene(self.split, index, seed=self.seed), self.size))
