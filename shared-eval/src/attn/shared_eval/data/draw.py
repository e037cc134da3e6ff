"""Random draws that are the same on every platform and Python version."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of random draws named by its key: ``Draw("shapes", "train", seed, index)``.

    Equal keys give equal streams and different keys independent ones, so that an item of a data set can be drawn by
    its index alone. Built on ``random.Random(str)`` and only its ``random()`` and ``getrandbits()``, whose results
    Python keeps from version to version; everything else is defined here.

    Args:
        *key: strings without ``/`` and integers; at least one.

    Raises:
        TypeError: if a part of the key is neither a string nor an integer.
        ValueError: if the key is empty or a string in it contains ``/``, which separates the parts.
    """

    def __init__(self, *key: str | int) -> None:
        if not key:
            raise ValueError("key must have at least one part, got none")
        for part in key:
            if isinstance(part, bool) or not isinstance(part, str | int):
                raise TypeError(f"key must consist of str and int, got {type(part).__name__}")
            if isinstance(part, str) and "/" in part:
                raise ValueError(f"key must not contain '/', got {part!r}")
        self._random = random.Random("/".join(map(str, key)))  # noqa: S311  (data, not secrets)

    def random(self) -> float:
        """A float uniform in [0, 1), a multiple of 2**-53."""
        return self._random.random()

    def integer(self, stop: int) -> int:
        """An integer uniform in 0 .. stop - 1, by rejection (unbiased).

        Raises:
            ValueError: if stop is not positive.
        """
        if stop < 1:
            raise ValueError(f"stop must be positive, got {stop}")
        bits = (stop - 1).bit_length()
        while (value := self._random.getrandbits(bits)) >= stop:
            pass
        return value

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, uniform.

        Raises:
            ValueError: if there are none.
        """
        if not items:
            raise ValueError("items must not be empty")
        return items[self.integer(len(items))]

    def sample(self, items: Sequence[T], size: int) -> list[T]:
        """``size`` of the items without replacement, in random order (Fisher-Yates, stopped early).

        Raises:
            ValueError: if size is negative or exceeds the number of items.
        """
        if not 0 <= size <= len(items):
            raise ValueError(f"size must lie in 0 .. {len(items)}, the number of items, got {size}")
        pool = list(items)
        for i in range(size):
            j = i + self.integer(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:size]

    def shuffle(self, items: Sequence[T]) -> list[T]:
        """The items in random order, as a new list."""
        return self.sample(items, len(items))

    def normal(self) -> float:
        """A standard normal number.

        Exact up to the rounding of one addition: von Neumann's comparison method as extended by Karney ("Sampling
        exactly from the normal distribution", 2016, algorithm N), which needs no logarithm or cosine and hence gives
        the same bits everywhere.
        """
        while True:
            whole = 0
            while self._happens(0.5):
                whole += 1
            # Now P(whole) ~ exp(-whole / 2); thin it to exp(-whole**2 / 2).
            if not all(self._happens(0.5) for _ in range(whole * (whole - 1))):
                continue
            part = self.random()
            exponent = part * (2 * whole + part) / 2
            units = int(exponent)
            if all(self._happens(1.0) for _ in range(units)) and self._happens(exponent - units):
                size = whole + part
                return size if self._random.getrandbits(1) else -size

    def _happens(self, exponent: float) -> bool:
        """True with probability exp(-exponent), for an exponent in [0, 1].

        The chance that ``exponent >= u_1 >= u_2 >= ... >= u_n`` holds for uniform numbers is exponent**n / n!, so that
        the first n that breaks the descent is odd with probability exp(-exponent).
        """
        previous, length = exponent, 1
        while (current := self.random()) <= previous:
            previous, length = current, length + 1
        return length % 2 == 1
