"""Errors of the edit operators: each names the argument, the rule and what came."""

import math
import re

import pytest
import torch

import attn.core_kernels as core

MIX, KEYS, SOURCE = torch.full((4,), 0.5), torch.ones(1, 1, 5, dtype=torch.bool), torch.tensor([1, 0])
OPERATORS = {
    "mix_values": {"mix": MIX},
    "scale_keys": {"keys": KEYS, "beta": 0.4},
    "swap_map": {"source": SOURCE},
    "remap_columns": {"source": SOURCE},
    "edit_map": {"fn": torch.sqrt},
    "decay_outside_window": {"half_window": 1},
    "boost_keys": {"keys": KEYS, "gain": 0.5},
}


def inputs(**changes):
    query, key, value = (torch.randn(2, heads, 5, 8) for heads in (4, 2, 2))
    return {"query": query, "key": key, "value": value} | changes


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"query": [1.0]}, TypeError, "query must be a tensor, got list"),
        ({"key": torch.randn(2, 3, 5, 8)}, ValueError, "key must have a number of heads that divides 4, got 3"),
        ({"value": torch.randn(2, 2, 4, 8)}, ValueError, "value must have key's batch, heads and tokens"),
        ({"value": torch.randn(2, 2, 5, 8).half()}, TypeError, "value must have key's dtype torch.float32"),
        (
            {"key": torch.randn(2, 2, 0, 8), "value": torch.randn(2, 2, 0, 8)},
            ValueError,
            "key must have at least one token, got [2, 2, 0, 8]",
        ),
        ({"causal": 1}, TypeError, "causal must be a bool, got int"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"key_mask": torch.ones(2, 5)}, TypeError, "key_mask must be a boolean tensor"),
        ({"scale": math.nan}, ValueError, "scale must be finite, got nan"),
    ],
)
def test_every_operator_checks_what_all_share(operator, wrong, error, message):
    with pytest.raises(error, match=re.escape(message)):
        getattr(core, operator)(**inputs() | OPERATORS[operator] | wrong)


@pytest.mark.parametrize(
    ("operator", "wrong", "error", "message"),
    [
        ("mix_values", {"mix": 0.5}, TypeError, "mix must be a floating-point tensor, got float"),
        (
            "mix_values",
            {"mix": torch.ones(4).long()},
            TypeError,
            "mix must be a floating-point tensor, got torch.int64",
        ),
        ("mix_values", {"mix": torch.ones(3)}, ValueError, "mix must have shape [4] or [2, 4], got [3]"),
        (
            "mix_values",
            {"mix": torch.ones(4, device="meta")},
            ValueError,
            "mix must be on query's device cpu, got meta",
        ),
        ("mix_values", {"mix": 1.5 * MIX + 0.5}, ValueError, "mix must lie in [0, 1], got entries from 1.25 to 1.25"),
        ("mix_values", {"mix": math.nan * MIX}, ValueError, "mix must lie in [0, 1], got entries from nan to nan"),
        (
            "mix_values",
            {"target": "mean"},
            ValueError,
            "target must be one of 'value', 'own_logit', 'own_mass', 'uniform', 'mean_query', 'argmax', got 'mean'",
        ),
        (
            "mix_values",
            {"query": torch.randn(2, 4, 6, 8)},
            ValueError,
            "query must have at most as many tokens as key, 5, for target 'value', got 6",
        ),
        ("mix_values", {"rows": [0]}, TypeError, "rows must be an int64 tensor, got list"),
        ("mix_values", {"rows": torch.tensor([5])}, ValueError, "rows must lie in [0, 5), got values from 5 to 5"),
        ("mix_values", {"rows": torch.ones(3, 1).long()}, ValueError, "rows must have shape [rows] or [2, rows]"),
        ("mix_values", {"impl": "triton"}, NotImplementedError, "'triton' of mix_values does not exist; impl='torch'"),
        ("scale_keys", {"keys": [True]}, TypeError, "keys must be a boolean tensor, got list"),
        ("scale_keys", {"keys": torch.ones(1, 1, 5)}, TypeError, "keys must be a boolean tensor, got torch.float32"),
        ("scale_keys", {"keys": KEYS[0]}, ValueError, "keys must have shape [2 or 1, 4 or 1, 5], got [1, 5]"),
        ("scale_keys", {"keys": KEYS[..., :4]}, ValueError, "keys must have shape [2 or 1, 4 or 1, 5], got [1, 1, 4]"),
        ("scale_keys", {"keys": KEYS.to("meta")}, ValueError, "keys must be on query's device cpu, got meta"),
        ("scale_keys", {"beta": 1.1}, ValueError, "beta must lie in [0, 1], got 1.1"),
        ("scale_keys", {"beta": math.nan}, ValueError, "beta must lie in [0, 1], got nan"),
        ("scale_keys", {"beta": "0"}, TypeError, "beta must be a number, got str"),
        ("swap_map", {"source": [1, 0]}, TypeError, "source must be an int64 tensor, got list"),
        ("swap_map", {"source": SOURCE.int()}, TypeError, "source must be an int64 tensor, got torch.int32"),
        ("swap_map", {"source": SOURCE[:1]}, ValueError, "source must have shape [batch] = [2], got [1]"),
        ("swap_map", {"source": SOURCE + 1}, ValueError, "source must lie in [0, 2), got [2, 1]"),
        ("remap_columns", {"source": SOURCE - 1}, ValueError, "source must lie in [0, 2), got [0, -1]"),
        (
            "remap_columns",
            {"mapping": torch.ones(5, 5)},
            ValueError,
            "mapping must have shape [2 or 1, 5, 5], got [5, 5]",
        ),
        ("remap_columns", {"mapping": [1.0]}, TypeError, "mapping must be a floating-point tensor, got list"),
        (
            "remap_columns",
            {"mapping": torch.full((1, 5, 5), math.inf)},
            ValueError,
            "mapping must be finite, got entries",
        ),
        ("remap_columns", {"blend": torch.ones(5)}, ValueError, "blend must have shape [2 or 1, 5], got [5]"),
        ("remap_columns", {"blend": -torch.ones(1, 5)}, ValueError, "blend must lie in [0, 1], got entries from -1.0"),
        ("remap_columns", {"weights": torch.ones(3, 5)}, ValueError, "weights must have shape [2 or 1, 5], got [3, 5]"),
        ("remap_columns", {"weights": torch.full((1, 5), math.nan)}, ValueError, "weights must be finite, got entries"),
        ("decay_outside_window", {"half_window": 1.0}, TypeError, "half_window must be an integer, got float"),
        ("decay_outside_window", {"half_window": -1}, ValueError, "half_window must be at least 0, got -1"),
        ("decay_outside_window", {"alpha": -0.1}, ValueError, "alpha must be finite and at least 0, got -0.1"),
        ("decay_outside_window", {"alpha": math.inf}, ValueError, "alpha must be finite and at least 0, got inf"),
        ("decay_outside_window", {"alpha": math.nan}, ValueError, "alpha must be finite and at least 0, got nan"),
        ("decay_outside_window", {"beta": math.nan}, ValueError, "beta must be finite and at least 0, got nan"),
        ("decay_outside_window", {"period": 0}, ValueError, "period must be positive and finite, got 0"),
        ("decay_outside_window", {"risk_half_width": -1}, ValueError, "risk_half_width must be finite and at least 0"),
        ("decay_outside_window", {"places": torch.ones(5)}, TypeError, "places must be an int64 tensor"),
        (
            "decay_outside_window",
            {"query_places": torch.ones(9).long()},
            ValueError,
            "query_places must have shape [queries] = ",
        ),
        ("decay_outside_window", {"query_places": [1]}, TypeError, "query_places must be an int64 tensor, got list"),
        ("decay_outside_window", {"places": torch.ones(4).long()}, ValueError, "places must have shape [keys] = [5]"),
        (
            "decay_outside_window",
            {"places": torch.ones(5, device="meta").long()},
            ValueError,
            "places must be on the device of the keys cpu, got meta",
        ),
        (
            "decay_outside_window",
            {"places": torch.ones(5).long(), "query": torch.randn(2, 4, 6, 8)},
            ValueError,
            "query must have at most as many tokens as key, 5, where places are given, got 6",
        ),
        ("boost_keys", {"keys": KEYS[0]}, ValueError, "keys must have shape [2 or 1, 4 or 1, 5], got [1, 5]"),
        ("boost_keys", {"gain": "1"}, TypeError, "gain must be a number, got str"),
        ("boost_keys", {"gain": math.nan}, ValueError, "gain must be finite, got entries from nan to nan"),
        ("boost_keys", {"gain": math.inf * MIX}, ValueError, "gain must be finite, got entries from inf to inf"),
        (
            "boost_keys",
            {"gain": torch.ones(5)},
            ValueError,
            "gain must be a number or have shape [4] or [2 or 1, 4 or 1, 5 or 1], got [5]",
        ),
        ("boost_keys", {"rows": torch.tensor([-1])}, ValueError, "rows must lie in [0, 5), got values from -1 to -1"),
        ("edit_map", {"fn": lambda _: 1.0}, TypeError, "fn must return a tensor, got float"),
        (
            "edit_map",
            {"fn": lambda x: x[:1]},
            ValueError,
            "fn must keep the map's shape [2, 4, 5, 5], got [1, 4, 5, 5]",
        ),
    ],
)
def test_an_error_names_the_argument_the_rule_and_what_came(operator, wrong, error, message):
    with pytest.raises(error, match=re.escape(message)):
        getattr(core, operator)(**inputs() | OPERATORS[operator] | wrong)
