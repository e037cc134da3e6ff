"""Support for tests of numerical code: memory that shows what was never written, and tolerances from the format.

Needs pytest, which is not a dependency of the package: the extra ``testing`` has it. A ``conftest.py`` imports the
fixture, ``from attn.core_kernels.testing import poisoned_memory  # noqa: F401``.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill every ``torch.empty*`` with NaN (integers with their maximum), so that an unwritten element shows."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def tolerance(dtype: torch.dtype, length: int) -> float:
    """The relative error that a chain of sums may have, from the format alone.

    Eight times the unit roundoff ``u`` of the result's format plus ``sqrt(length)`` roundoffs of the accumulator's
    (float32, float64 for float64): rounding errors of a sum of ``length`` terms grow like its square root when they are
    independent (Higham and Mary, 2019), and the eight covers the few sums and elementary functions that follow one
    another in an attention operator.

    Args:
        dtype: format of the result.
        length: number of terms of the longest sum, e.g. tokens plus head_dim.
    """
    accumulator = torch.promote_types(dtype, torch.float32)
    return 8 * (torch.finfo(dtype).eps / 2 + max(length, 1) ** 0.5 * torch.finfo(accumulator).eps / 2)


def assert_close(actual: Tensor, expected: Tensor, *, length: int, dtype: torch.dtype | None = None) -> None:
    """Assert that a result is within `tolerance` of its float64 expectation, element by element.

    An element may be off by that share of itself plus that share of the largest expected magnitude, since a sum's
    rounding error is relative to its terms and not to what is left after they cancel.

    Args:
        actual: the result.
        expected: same shape, float64.
        length: number of terms of the longest sum.
        dtype: coarsest format that the values passed through; ``actual``'s own by default.
    """
    relative = tolerance(dtype or actual.dtype, length)
    finite = expected[expected.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    torch.testing.assert_close(
        actual, expected, rtol=relative, atol=relative * largest, check_dtype=False, equal_nan=False
    )
