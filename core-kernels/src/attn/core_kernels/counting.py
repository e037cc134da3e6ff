"""What a call costs, counted by PyTorch's profiler rather than timed: the same on every run."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def floating_point_operations(function: Callable[[], object]) -> int:
    """Floating-point operations of a call on the CPU: matrix products, convolutions, sums and products of tensors.

    Every operation that runs is counted, so also inside registered operators and in the backward.
    """
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as trace:
        function()
    return int(sum(event.flops for event in trace.key_averages()))


def peak_memory(function: Callable[[], object]) -> int:
    """The most bytes that a call holds at once in CPU tensors, beyond what was allocated before it.

    Counted from every allocation and release, so also inside registered operators and in the backward.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    results = trace.profiler.kineto_results
    live = peak = 0
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
