"""Rules that say which keys a query attends to, for `BlockLayout.from_rule`.

A rule takes integer tensors ``batch, head, query, key`` that broadcast, and returns bools: the signature of
FlexAttention's ``mask_mod``. Query and key are positions on the key axis; the last query is level with the last key.
"""

from collections.abc import Callable

from torch import Tensor

from attn.core_kernels.checks import check_size

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def causal(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Every key up to the query."""
    return key <= query


def sliding_window(window: int, *, causal: bool = True) -> MaskRule:
    """The keys nearer than ``window`` tokens, the query's own counted: ``window`` keys, or 2 * window - 1 both ways.

    Args:
        window: distance in tokens from which keys are hidden, at least 1.
        causal: whether the keys after the query are hidden.

    Raises:
        TypeError: if the window is not an integer.
        ValueError: if it is below 1.
    """
    return sinks_and_window(0, window, causal=causal)


def sinks_and_window(sinks: int, window: int, *, causal: bool = True) -> MaskRule:
    """The first ``sinks`` keys of the sequence and a `sliding_window`, as in StreamingLLM.

    Args:
        sinks: tokens at the start that every query sees, 0 or more.
        window: distance in tokens from which other keys are hidden, at least 1.
        causal: whether the keys after the query are hidden, sinks too.

    Raises:
        TypeError: if either size is not an integer.
        ValueError: if sinks is negative or the window below 1.
    """
    if sinks != 0:
        check_size("sinks", sinks)
    check_size("window", window)

    def rule(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = ((query - key).abs() < window) | (key < sinks)
        return near & (key <= query) if causal else near

    return rule
