"""Test support: unwritten memory shows, switches are restored, tolerances follow the format."""

import pytest
import torch

from attn.core_kernels.counting import peak_memory
from attn.core_kernels.testing import assert_close, tolerance


@pytest.mark.usefixtures("poisoned_memory")
def test_unwritten_memory_is_nan():
    assert torch.empty(64).isnan().all()
    assert torch.empty_like(torch.ones(3, dtype=torch.float64)).isnan().all()
    assert (torch.empty(4, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()


@pytest.mark.parametrize("before", [(False, False), (True, False), (True, True)])
def test_the_fixture_restores_the_switch(before):
    from attn.core_kernels import testing

    enabled, warn_only = before
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    try:
        steps = testing.poisoned_memory._get_wrapped_function()()
        next(steps)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        next(steps, None)
        after = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        assert after == before
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 64, 4096])
def test_a_sum_and_its_rounding_are_within_tolerance_and_a_wrong_one_is_not(dtype, length):
    generator = torch.Generator().manual_seed(0)
    terms = torch.rand(32, length, generator=generator, dtype=torch.float64).to(dtype)
    exact = terms.double().sum(-1)
    accumulated = torch.zeros(32, dtype=torch.promote_types(dtype, torch.float32))
    for term in terms.unbind(-1):
        accumulated += term
    assert_close(accumulated.to(dtype), exact, length=length)
    wrong = exact * (1 + 3 * tolerance(dtype, length))
    with pytest.raises(AssertionError):
        assert_close(wrong.to(dtype), exact, length=length)


def test_infinities_must_match():
    expected = torch.tensor([1.0, -torch.inf], dtype=torch.float64)
    assert_close(expected.float(), expected, length=1)
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([1.0, torch.nan]), expected, length=1)


def test_peak_memory_counts_what_lives_at_once():
    def call():
        first = torch.ones(1000, 1000)
        second = first + 1
        del first
        (torch.ones(3, 1000, 1000) * second).sum().item()

    assert peak_memory(call) == pytest.approx(4e6 * 7, rel=0.01)
