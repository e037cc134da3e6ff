"""Packed associative recall: key and value share a token, then some keys are asked for."""

from hashlib import sha256
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

_MAX_WORDS = 2**16  # the low 16 bits of a random word carry the position when positions are ranked by it


class PackedRecall(NamedTuple):
    """A batch of packed recall; all tensors int64 ``[batch, tokens]``, ``tokens = pairs + gap + queries``.

    Attributes:
        key_ids: 0 .. keys - 1; ``keys`` where there is none (the gap). Embed with a table of ``keys + 1`` rows.
        value_ids: 0 .. values - 1 on the pairs; ``values`` elsewhere. Embed with a table of ``values + 1`` rows.
        labels: the value asked for, 0 .. values - 1, on the queries; -100 elsewhere (ignored by cross entropy).
        evidence: position of the token that holds the answer, on the queries; -1 elsewhere.
    """

    key_ids: Tensor
    value_ids: Tensor
    labels: Tensor
    evidence: Tensor


def packed_recall(
    batch: int,
    *,
    pairs: int,
    queries: int,
    keys: int,
    values: int,
    gap: int = 0,
    split: str = "train",
    seed: int = 0,
    index: int = 0,
) -> PackedRecall:
    """Examples ``index .. index + batch - 1`` of the associative recall task whose pairs take one token each.

    An example has ``pairs`` tokens with a key and a value, ``gap`` empty tokens, and ``queries`` tokens with a key
    alone, whose value is asked for. The keys of an example are distinct; its values are independent; its queries ask
    for distinct pairs in random order. The model is meant to add the embeddings of key and value. An example depends
    on its index, split and seed and on the sizes, not on the batch that it is in.

    Args:
        batch: number of examples.
        pairs: number of key-value pairs, 1 .. keys.
        queries: number of pairs asked for, 1 .. pairs.
        keys: size of the key vocabulary, at most 65,536.
        values: size of the value vocabulary, at most 65,536.
        gap: empty tokens between the pairs and the queries.
        split: name of a seed space; different splits are independent.
        seed: which data set of that split.
        index: the first example, 0 .. 2**64 - 1.

    Returns:
        PackedRecall, on the CPU.

    Raises:
        ValueError: if a size is outside its range.
    """
    for name, size, low, high in (
        ("batch", batch, 1, None),
        ("keys", keys, 1, _MAX_WORDS),
        ("values", values, 1, _MAX_WORDS),
        ("pairs", pairs, 1, keys),
        ("queries", queries, 1, pairs),
        ("gap", gap, 0, None),
        ("index", index, 0, None),
    ):
        if size < low or (high is not None and size > high):
            raise ValueError(f"{name} must be at least {low}{f' and at most {high}' * (high is not None)}, got {size}")

    words = _random_words(batch, keys + pairs + pairs, f"packed_recall/{split}/{seed}", index)
    key_words, value_words, query_words = np.split(words, (keys, keys + pairs), axis=1)
    pair_keys = _order(key_words)[:, :pairs]
    pair_values = ((value_words >> np.uint64(32)) * np.uint64(values) >> np.uint64(32)).astype(np.int64)
    asked = _order(query_words)[:, :queries]

    tokens = pairs + gap + queries
    key_ids = np.full((batch, tokens), keys)
    value_ids = np.full((batch, tokens), values)
    labels = np.full((batch, tokens), -100)
    evidence = np.full((batch, tokens), -1)
    key_ids[:, :pairs], value_ids[:, :pairs] = pair_keys, pair_values
    key_ids[:, pairs + gap :] = np.take_along_axis(pair_keys, asked, axis=1)
    labels[:, pairs + gap :] = np.take_along_axis(pair_values, asked, axis=1)
    evidence[:, pairs + gap :] = asked
    return PackedRecall(*map(torch.from_numpy, (key_ids, value_ids, labels, evidence)))


class PackedRecallDataset(Dataset[PackedRecall]):
    """Batches of packed recall, addressed by index: item ``i`` holds examples ``i * batch .. (i + 1) * batch - 1``.

    An item is a whole batch, so load it with ``DataLoader(dataset, batch_size=None)``; workers and a
    ``DistributedSampler`` then share out the items. Endless training reads it through ``IndexStream``.

    Args:
        batches: number of items.
        batch: examples in an item.
        **task: the other arguments of ``packed_recall``, without ``index``.
    """

    def __init__(self, batches: int, batch: int, **task: int | str) -> None:
        self.batches, self.batch, self.task = batches, batch, task
        self[0]  # refuses bad sizes here rather than in a worker

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, item: int) -> PackedRecall:
        if not 0 <= item < self.batches:
            raise IndexError(f"item must lie in 0 .. {self.batches - 1}, got {item}")
        return packed_recall(self.batch, index=item * self.batch, **self.task)  # type: ignore[arg-type]


def _random_words(rows: int, columns: int, key: str, first_row: int) -> np.ndarray:
    """Random 64-bit words of rows ``first_row ..``, from Philox by counter: a row is the same in any batch.

    Only raw words are used: NumPy keeps those from version to version, not what its distributions make of them.
    """
    blocks = -(-columns // 4)  # a step of Philox's counter gives four words
    philox = np.random.Philox(
        key=int.from_bytes(sha256(key.encode()).digest()[:16], "little"), counter=first_row * blocks
    )
    return philox.random_raw(rows * blocks * 4).reshape(rows, blocks * 4)[:, :columns]


def _order(words: np.ndarray) -> np.ndarray:
    """A random permutation of the columns in each row: positions ranked by their word.

    The position replaces the low 16 bits, which makes the words of a row distinct and the result independent of the
    sorting algorithm.
    """
    low = np.uint64(_MAX_WORDS - 1)
    marked = (words & ~low) | np.arange(words.shape[1], dtype=np.uint64)
    marked.sort(axis=1)
    return (marked & low).astype(np.int64)
