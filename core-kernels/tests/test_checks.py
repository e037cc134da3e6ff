"""Checks of shared arguments: what is right passes, and each message names argument, rule and what came."""

import math

import pytest
import torch

from attn.core_kernels import checks

ROWS = torch.ones(2, 4, 5, 3)


def test_grouped_heads_and_cross_attention_pass():
    checks.check_query_key(ROWS, torch.ones(2, 2, 7, 3))
    checks.check_query_key(torch.ones(0, 4, 0, 3), torch.ones(0, 1, 0, 3), same_tokens=True)
    checks.check_value(torch.ones(2, 4, 5, 1), ROWS)
    checks.check_value(ROWS.bfloat16(), ROWS, any_dtype=True)
    checks.check_key_mask(None, ROWS)
    checks.check_key_mask(torch.ones(2, 5, dtype=torch.bool), ROWS)


@pytest.mark.parametrize(
    ("query", "key", "error", "message"),
    [
        ([[1.0]], ROWS, TypeError, "query must be a tensor, got list"),
        (ROWS.int(), ROWS, TypeError, "query must have dtype float64, .* got torch.int32"),
        (ROWS[0], ROWS, ValueError, r"query must have shape .*, got \[4, 5, 3\]"),
        (ROWS, ROWS[..., :0], ValueError, r"key must have shape .*, got \[2, 4, 5, 0\]"),
        (ROWS, ROWS[:, :0], ValueError, r"key must have shape .*, got \[2, 0, 5, 3\]"),
        (ROWS, ROWS.double(), TypeError, "key must have query's dtype torch.float32, got torch.float64"),
        (ROWS, ROWS.to("meta"), ValueError, "key must be on query's device cpu, got meta"),
        (ROWS, ROWS[:1], ValueError, r"key must have query's batch size 2, got \[1, 4, 5, 3\]"),
        (ROWS, ROWS[..., :2], ValueError, r"key must have query's width 3, got \[2, 4, 5, 2\]"),
        (ROWS, ROWS[:, :3], ValueError, "key must have a number of heads that divides 4, got 3"),
        (ROWS, ROWS[:, :, :4], ValueError, "key must have query's 5 tokens, got 4"),
    ],
)
def test_query_and_key_must_agree(query, key, error, message):
    with pytest.raises(error, match=message):
        checks.check_query_key(query, key, same_tokens=True)


def test_messages_use_the_names_of_the_arguments():
    with pytest.raises(ValueError, match="key_features must have query_features's width 3"):
        checks.check_query_key(ROWS, ROWS[..., :2], names=("query_features", "key_features"))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, TypeError, "value must be a tensor, got NoneType"),
        (ROWS[:, :2], ValueError, r"value must have key's batch, heads and tokens \[2, 4, 5\], got \[2, 2, 5, 3\]"),
        (ROWS.double(), TypeError, "value must have key's dtype torch.float32, got torch.float64"),
    ],
)
def test_value_must_agree_with_key(value, error, message):
    with pytest.raises(error, match=message):
        checks.check_value(value, ROWS)


@pytest.mark.parametrize(
    ("key_mask", "error", "message"),
    [
        (torch.ones(2, 5), TypeError, "key_mask must be a boolean tensor, got torch.float32"),
        (True, TypeError, "key_mask must be a boolean tensor, got bool"),
        (torch.ones(5, dtype=torch.bool), ValueError, r"key_mask must have shape .* = \[2, 5\], got \[5\]"),
        (torch.ones(2, 5, dtype=torch.bool, device="meta"), ValueError, "key_mask must be on key's device cpu"),
    ],
)
def test_key_mask_must_agree_with_key(key_mask, error, message):
    with pytest.raises(error, match=message):
        checks.check_key_mask(key_mask, ROWS)


def test_scale_is_the_default_or_finite():
    assert checks.check_scale(None, 16) == 0.25
    assert checks.check_scale(-2, 16) == -2
    for scale in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"scale must be finite, got {scale}"):
            checks.check_scale(scale, 16)
    with pytest.raises(TypeError, match="scale must be a number, got str"):
        checks.check_scale("1", 16)


def test_numbers_are_checked():
    checks.check_positive("eps", 1e-12)
    checks.check_size("chunk_size", 1)
    for eps in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"eps must be positive and finite, got {eps}"):
            checks.check_positive("eps", eps)
    with pytest.raises(TypeError, match="eps must be a number, got bool"):
        checks.check_positive("eps", True)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        checks.check_size("chunk_size", 0)
    for size in (1.0, True):
        with pytest.raises(TypeError, match=f"chunk_size must be an integer, got {type(size).__name__}"):
            checks.check_size("chunk_size", size)


def test_checks_stay_on_when_compiled_and_break_no_graph():
    def operator(query, key, value, key_mask, scale, chunk_size):
        checks.check_query_key(query, key, same_tokens=True)
        checks.check_value(value, key)
        checks.check_key_mask(key_mask, key)
        checks.check_size("chunk_size", chunk_size)
        return query * checks.check_scale(scale, query.shape[-1])

    compiled = torch.compile(operator, fullgraph=True, dynamic=True, backend="eager")
    mask = torch.ones(2, 5, dtype=torch.bool)
    for scale in (0.5, 0.25, None):
        expected = ROWS * (3**-0.5 if scale is None else scale)
        torch.testing.assert_close(compiled(ROWS, ROWS, ROWS, mask, scale, 4), expected)
    with pytest.raises(Exception, match="scale must be finite"):
        compiled(ROWS, ROWS, ROWS, mask, math.nan, 4)
    with pytest.raises(Exception, match="key must have query's 5 tokens"):
        compiled(ROWS, ROWS[:, :, :4], ROWS, mask, 0.5, 4)
