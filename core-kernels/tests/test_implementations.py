"""The choice of an implementation: what is asked for is taken or refused, and only "auto" chooses."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attn.core_kernels import implementations
from attn.core_kernels.implementations import Serves, capability_table, choose_implementation


@pytest.fixture
def table(monkeypatch):
    """An operator with three implementations that serve different calls."""
    entry = {
        "reference": Serves(),
        "torch": Serves(gradient=False),
        "triton": Serves(devices=("cuda",), dtypes=(torch.float32, torch.bfloat16), max_head_dim=64),
    }
    monkeypatch.setitem(implementations.IMPLEMENTATIONS, "glance", entry)
    return entry


class Tensor:
    """What the choice reads of a tensor, on a device that this machine may lack."""

    def __init__(self, device="cpu", dtype=torch.float32, width=8, requires_grad=False):
        self.device, self.dtype, self.shape = torch.device(device), dtype, (1, 1, 1, width)
        self.requires_grad = requires_grad


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("tensor", "chosen"),
    [
        (Tensor("cuda"), "triton"),
        (Tensor("cuda", requires_grad=True), "triton"),
        (Tensor("cuda", dtype=torch.float64), "torch"),
        (Tensor("cuda", width=65), "torch"),
        (Tensor("cpu"), "torch"),
        (Tensor("xpu"), "torch"),
    ],
)
def test_auto_takes_triton_on_cuda_and_torch_elsewhere(tensor, chosen):
    assert choose_implementation("glance", "auto", tensor) == chosen


@pytest.mark.usefixtures("table")
def test_auto_never_takes_the_reference():
    with pytest.raises(NotImplementedError, match="impl='auto' of glance finds none; impl='reference' serves"):
        choose_implementation("glance", "auto", Tensor(requires_grad=True))
    with torch.no_grad():
        assert choose_implementation("glance", "auto", Tensor(requires_grad=True)) == "torch"


@pytest.mark.parametrize(
    ("impl", "tensor", "message"),
    [
        ("triton", Tensor("cpu"), "'triton' of glance serves device cuda, got cpu; impl='torch' serves"),
        ("triton", Tensor("cuda", torch.float64), "serves dtype float32 or bfloat16, got float64; impl='torch'"),
        ("triton", Tensor("cuda", width=65), "serves a last axis up to 64, got 65; impl='torch' serves this call"),
        ("torch", Tensor("cuda", requires_grad=True), "has no gradient, .*; impl='triton' serves this call"),
        ("torch", Tensor("cpu", requires_grad=True), "has no gradient, .*; impl='reference' serves this call"),
    ],
)
def test_a_named_implementation_never_falls_back(table, impl, tensor, message):
    with pytest.raises(NotImplementedError, match=message):
        choose_implementation("glance", impl, tensor)
    del table[impl]
    with pytest.raises(NotImplementedError, match=f"impl='{impl}' of glance does not exist; impl="):
        choose_implementation("glance", impl, tensor)


def test_every_argument_of_a_call_must_be_served(table):
    with pytest.raises(NotImplementedError, match="got 65"):
        choose_implementation("glance", "triton", Tensor("cuda"), Tensor("cuda", width=65))
    table["torch"] = table["reference"] = Serves(dtypes=())
    with pytest.raises(NotImplementedError, match="no implementation serves this call"):
        choose_implementation("glance", "auto", Tensor("cpu"))


@pytest.mark.usefixtures("table")
def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="impl must be 'auto', 'reference', 'torch', 'triton' or 'flex', got 'cuda'"):
        choose_implementation("glance", "cuda", Tensor())


@pytest.mark.usefixtures("table")
def test_auto_does_without_triton_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(implementations, "_triton_installed", lambda: False)
    assert choose_implementation("glance", "auto", Tensor("cuda")) == "torch"
    with pytest.raises(NotImplementedError, match="needs the package triton"):
        choose_implementation("glance", "triton", Tensor("cuda"))


@pytest.mark.usefixtures("table")
def test_the_interpreter_serves_any_device_when_asked_by_name(monkeypatch):
    monkeypatch.setattr(implementations, "_triton_interprets", lambda: True)
    assert choose_implementation("glance", "triton", Tensor("cpu")) == "triton"
    assert choose_implementation("glance", "auto", Tensor("cpu")) == "torch"


def test_flex_comes_first_on_cuda_and_elsewhere_when_asked_by_name_without_a_gradient(table):
    table["flex"] = implementations.FLEX
    assert choose_implementation("glance", "auto", Tensor("cuda", requires_grad=True)) == "flex"
    assert choose_implementation("glance", "auto", Tensor("cpu")) == "torch"
    assert choose_implementation("glance", "flex", Tensor("cpu")) == "flex"
    with pytest.raises(NotImplementedError, match="serves device cuda, got cpu; impl='reference' serves"):
        choose_implementation("glance", "flex", Tensor("cpu", requires_grad=True))


def test_the_printed_table_has_a_row_per_implementation(table):
    rows = capability_table().splitlines()
    assert len(rows) == 2 + sum(map(len, implementations.IMPLEMENTATIONS.values()))
    assert rows[-1] == "| `glance` | `triton` | cuda | float32, bfloat16 | up to 64 | yes |"
    assert rows[-2].endswith("| no |")


BLOCKED = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError("triton is blocked", name="triton")
sys.meta_path.insert(0, Blocked())
import torch
import attn.core_kernels as core
"""


CALLS = """
rows = torch.ones(1, 2, 3, 4)
layout = core.BlockLayout.from_blocks(torch.ones(1, 1, dtype=torch.bool), 3, 3)
calls = {
    "linear_attention": lambda impl: core.linear_attention(rows, rows, rows, impl=impl),
    "attention_with_lse": lambda impl: core.attention_with_lse(rows, rows, rows, impl=impl),
    "key_mass": lambda impl: core.key_mass(rows, rows, impl=impl),
    "key_moments": lambda impl: core.key_moments(rows, rows, impl=impl),
    "suffix_key_mass": lambda impl: core.suffix_key_mass(rows, rows, block_size=2, impl=impl),
    "row_stats": lambda impl: core.row_stats(rows, rows, impl=impl),
    "submap": lambda impl: core.submap(rows, rows, impl=impl),
    "tile_stats": lambda impl: core.tile_stats(rows, rows, block_size=2, eps=0.1, impl=impl),
    "mass_by_distance": lambda impl: core.mass_by_distance(rows, rows, (0, 1), impl=impl),
    "logit_by_distance": lambda impl: core.logit_by_distance(rows, rows, (0, 1), impl=impl),
    "block_sparse_attention": lambda impl: core.block_sparse_attention(rows, rows, rows, layout, impl=impl),
    "windowed_attention": lambda impl: core.windowed_attention(rows, rows, rows, 2, impl=impl),
    "mimicry_cross_entropy": lambda impl: core.mimicry_cross_entropy(rows, rows, rows, rows, impl=impl),
    "mix_values": lambda impl: core.mix_values(rows, rows, rows, torch.ones(2), impl=impl),
    "scale_keys": lambda impl: core.scale_keys(rows, rows, rows, torch.ones(1, 1, 3) > 0, 0.4, impl=impl),
    "block_sparse_attention": lambda impl: core.block_sparse_attention(rows, rows, rows, layout, impl=impl),
    "windowed_attention": lambda impl: core.windowed_attention(rows, rows, rows, 2, impl=impl),
    "decay_outside_window": lambda impl: core.decay_outside_window(rows, rows, rows, 1, impl=impl),
    "boost_keys": lambda impl: core.boost_keys(rows, rows, rows, torch.ones(1, 1, 3) > 0, 0.5, impl=impl),
    "swap_map": lambda impl: core.swap_map(rows, rows, rows, torch.tensor([0]), impl=impl),
    "remap_columns": lambda impl: core.remap_columns(rows, rows, rows, torch.tensor([0]), impl=impl),
}
for operator, table in core.IMPLEMENTATIONS.items():
    for impl in ("auto", *(table.keys() - {"triton", "flex"})):
        calls[operator](impl)
assert "triton" not in sys.modules
"""


def test_every_operator_works_in_an_interpreter_without_triton():
    subprocess.run([sys.executable, "-c", BLOCKED + CALLS], check=True, timeout=300)


def test_the_readme_shows_the_table():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    shown = readme.split("<!-- implementations -->\n")[1]
    assert shown == capability_table() + "\n"
