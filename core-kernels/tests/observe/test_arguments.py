"""Errors of the observe operators, their use under torch.compile and autocast, and what is said to be served."""

import re

import pytest
import torch

from attn.core_kernels.observe import softmax_map
from attn.core_kernels.observe.softmax_map import blockwise
from attn.core_kernels.visibility import make_visibility

FORWARD_ONLY = {
    "key_mass": {},
    "key_moments": {},
    "row_stats": {},
    "suffix_key_mass": {"block_size": 2},
    "tile_stats": {"block_size": 2, "eps": 0.1},
    "mass_by_distance": {"edges": (0, 2)},
    "logit_by_distance": {"edges": (0, 2)},
}
OPERATORS = {**FORWARD_ONLY, "submap": {}, "mean_map": {}}


def inputs(**changes):
    query, key, value = (torch.randn(2, heads, 5, 8) for heads in (4, 2, 2))
    return {"query": query, "key": key, "value": value} | changes


def key_alone(name):
    arguments = inputs()
    del arguments["value"]
    return arguments | OPERATORS[name]


@pytest.mark.parametrize(
    ("operator", "wrong", "error", "message"),
    [
        (
            "attention_with_lse",
            {"value": torch.randn(2, 2, 4, 8)},
            ValueError,
            "value must have key's batch, heads and tokens",
        ),
        ("key_mass", {"query": [1.0]}, TypeError, "query must be a tensor, got list"),
        (
            "key_mass",
            {"query": torch.randn(2, 5, 8)},
            ValueError,
            "query must have shape [batch, heads, tokens, width]",
        ),
        (
            "key_mass",
            {"key": torch.randn(2, 3, 5, 8)},
            ValueError,
            "key must have a number of heads that divides 4, got 3",
        ),
        ("key_mass", {"key": torch.randn(2, 2, 5, 7)}, ValueError, "key must have query's width 8, got [2, 2, 5, 7]"),
        ("key_mass", {"key": torch.randn(2, 2, 5, 8).half()}, TypeError, "key must have query's dtype torch.float32"),
        (
            "row_stats",
            {"key": torch.randn(2, 2, 0, 8)},
            ValueError,
            "key must have at least one token, got [2, 2, 0, 8]",
        ),
        ("mean_map", {"causal": 1}, TypeError, "causal must be a bool, got int"),
        ("mean_map", {"window": 0}, ValueError, "window must be at least 1, got 0"),
        ("mean_map", {"window": 2.0}, TypeError, "window must be an integer, got float"),
        ("mean_map", {"key_mask": torch.ones(2, 5)}, TypeError, "key_mask must be a boolean tensor, got torch.float32"),
        (
            "mean_map",
            {"key_mask": torch.ones(2, 4, dtype=torch.bool)},
            ValueError,
            "key_mask must have shape [batch, keys] = [2, 5], got [2, 4]",
        ),
        ("mean_map", {"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
        (
            "mean_map",
            {"impl": "fast"},
            ValueError,
            "impl must be 'auto', 'reference', 'torch', 'triton' or 'flex', got 'fast'",
        ),
        (
            "key_mass",
            {"row_weights": torch.ones(5, dtype=torch.int64)},
            TypeError,
            "row_weights must be a floating-point tensor, got torch.int64",
        ),
        (
            "key_moments",
            {"row_weights": torch.ones(2, 3, 5)},
            ValueError,
            "row_weights must have shape [5], [2 or 1, 4 or 1, 5] or [2 or 1, 4 or 1, sets, 5], got [2, 3, 5]",
        ),
        ("key_mass", {"row_weights": torch.ones(4)}, ValueError, "got [4]"),
        ("key_mass", {"row_weights": torch.ones(1, 5)}, ValueError, "got [1, 5]"),
        (
            "key_mass",
            {"row_weights": torch.ones(5, device="meta")},
            ValueError,
            "row_weights must be on query's device cpu, got meta",
        ),
        (
            "key_mass",
            {"lse": torch.ones(2, 4, 5).double()},
            TypeError,
            "lse must be a tensor of dtype torch.float32, got torch.float64",
        ),
        ("key_mass", {"lse": 1.0}, TypeError, "lse must be a tensor of dtype torch.float32, got float"),
        (
            "tile_stats",
            {"lse": torch.ones(2, 4, 6)},
            ValueError,
            "lse must have shape [batch, heads, queries] = [2, 4, 5], got [2, 4, 6]",
        ),
        (
            "key_mass",
            {"lse": torch.ones(2, 4, 5, device="meta")},
            ValueError,
            "lse must be on query's device cpu, got meta",
        ),
        ("suffix_key_mass", {"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
        ("suffix_key_mass", {"reduce": "sum"}, ValueError, "reduce must be 'none' or 'mean_heads', got 'sum'"),
        ("submap", {"reduce": "mean"}, ValueError, "reduce must be 'none' or 'mean_heads', got 'mean'"),
        ("tile_stats", {"block_size": (2, 0)}, ValueError, "block_size must be at least 1, got 0"),
        ("tile_stats", {"block_size": (2, 2, 2)}, ValueError, "block_size must be one size or two, got 3"),
        ("tile_stats", {"eps": float("nan")}, ValueError, "eps must lie in [0, 1], got nan"),
        ("tile_stats", {"eps": "0"}, TypeError, "eps must be a number, got str"),
        ("row_stats", {"span": (3, 3)}, ValueError, "span must satisfy 0 <= start < stop <= 5, got (3, 3)"),
        ("row_stats", {"span": (0, 6)}, ValueError, "span must satisfy 0 <= start < stop <= 5, got (0, 6)"),
        ("row_stats", {"span": (0.0, 2)}, TypeError, "span must be a pair of integers, got (0.0, 2)"),
        ("row_stats", {"span": (0, 1, 2)}, TypeError, "span must be a pair of integers, got (0, 1, 2)"),
        ("submap", {"rows": torch.ones(2)}, TypeError, "rows must be an int64 tensor, got torch.float32"),
        ("submap", {"columns": [1]}, TypeError, "columns must be an int64 tensor, got list"),
        (
            "submap",
            {"columns": torch.zeros(3, 1).long()},
            ValueError,
            "columns must have shape [columns] or [2, columns], got [3, 1]",
        ),
        ("submap", {"rows": torch.tensor([0, 5])}, ValueError, "rows must lie in [0, 5), got values from 0 to 5"),
        (
            "submap",
            {"columns": torch.tensor([-1, 2])},
            ValueError,
            "columns must lie in [0, 5), got values from -1 to 2",
        ),
        ("submap", {"rows": torch.zeros(1, device="meta").long()}, ValueError, "rows must be on device cpu, got meta"),
        ("mass_by_distance", {"edges": ()}, TypeError, "edges must be at least one integer, got []"),
        ("mass_by_distance", {"edges": (0.5,)}, TypeError, "edges must be at least one integer, got [0.5]"),
        ("mass_by_distance", {"edges": (2, 2)}, ValueError, "edges must increase from 0 or more, got [2, 2]"),
        ("logit_by_distance", {"edges": (-1, 2)}, ValueError, "edges must increase from 0 or more, got [-1, 2]"),
        (
            "logit_by_distance",
            {"places": torch.ones(5)},
            TypeError,
            "places must be an int64 tensor, got torch.float32",
        ),
        (
            "logit_by_distance",
            {"places": torch.ones(4).long()},
            ValueError,
            "places must have shape [keys] = [5], got [4]",
        ),
        (
            "logit_by_distance",
            {"places": torch.ones(5, device="meta").long()},
            ValueError,
            "places must be on the device of the keys cpu, got meta",
        ),
        (
            "logit_by_distance",
            {"places": torch.ones(5).long(), "query": torch.randn(2, 4, 6, 8)},
            ValueError,
            "query must have at most as many tokens as key, 5, where places are given, got 6",
        ),
    ],
)
def test_an_error_names_the_argument_the_rule_and_what_came(operator, wrong, error, message):
    arguments = inputs() if operator == "attention_with_lse" else key_alone(operator)
    with pytest.raises(error, match=re.escape(message)):
        getattr(softmax_map, operator)(**arguments | wrong)


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_what_has_no_gradient_refuses_to_drop_it(name):
    arguments = key_alone(name)
    arguments["key"].requires_grad_()
    with pytest.raises(NotImplementedError, match="impl='reference' serves this call"):
        getattr(softmax_map, name)(**arguments)
    with torch.no_grad():
        getattr(softmax_map, name)(**arguments)
    result = getattr(softmax_map, name)(**arguments, impl="reference")
    total = result if isinstance(result, torch.Tensor) else next(x for x in result if x.requires_grad)
    total.nan_to_num().square().sum().backward()
    assert arguments["key"].grad.isfinite().all()


@pytest.mark.parametrize("name", [*OPERATORS, "attention_with_lse"])
def test_compiled_without_a_graph_break_it_gives_the_same(name):
    arguments = inputs() if name == "attention_with_lse" else key_alone(name)
    arguments |= {"causal": True, "key_mask": torch.tensor([[True] * 5, [False, True, True, True, True]])}
    if name == "submap":
        arguments |= {"rows": torch.tensor([3, 1]), "columns": torch.tensor([0, 2])}
    operator = getattr(softmax_map, name)
    compiled = torch.compile(operator, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**arguments), operator(**arguments), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", [*OPERATORS, "attention_with_lse"])
def test_autocast_changes_nothing(name):
    arguments = inputs() if name == "attention_with_lse" else key_alone(name)
    if name == "attention_with_lse":
        arguments["value"] = arguments["value"][..., :3]
    operator = getattr(softmax_map, name)
    expected = operator(**arguments)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(operator(**arguments), expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("rule", [{}, {"causal": True, "window": 3, "key_mask": torch.rand(2, 5) > 0.2}])
def test_registered_operators_are_sound(rule, gradient):
    query, key, value = (x.requires_grad_(gradient) for x in inputs().values())
    rule = make_visibility(query, key, **{"causal": False, "window": None, "key_mask": None} | rule).as_arguments()
    narrow = torch.randn(2, 2, 5, 3).requires_grad_(gradient)
    scale, lse = 0.5, torch.randn(2, 4, 5)
    places = torch.arange(5), torch.arange(5)
    columns = torch.tensor([[0, 2, 2]])
    if gradient:
        calls = [
            (blockwise.attention_with_lse, (query, key, value, scale, *rule)),
            (blockwise.attention_with_lse, (query, key, narrow, scale, *rule)),
            (blockwise.submap, (query, key, columns, False, scale, *rule)),
            (blockwise.submap, (query, key, None, True, scale, *rule)),
        ]
    else:
        calls = [
            (blockwise.key_moments, (query, key, torch.ones(1, 1, 2, 5), lse, True, scale, *rule)),
            (blockwise.key_moments, (query, key, torch.ones(2, 4, 1, 5), None, False, scale, *rule)),
            (blockwise.suffix_key_mass, (query, key, 2, True, None, scale, *rule)),
            (blockwise.suffix_key_mass, (query, key, 2, False, lse, scale, *rule)),
            (blockwise.row_stats, (query, key, scale, *rule)),
            (blockwise.tile_stats, (query, key, 2, 3, 0.1, lse, scale, *rule)),
            (blockwise.mass_by_distance, (query, key, *places, [0, 2], lse, scale, *rule)),
            (blockwise.logit_by_distance, (query, key, *places, [0, 2], scale, *rule)),
        ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments)
