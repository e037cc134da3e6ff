"""The table of ahead-of-time builds says what a kernel does wrong, on a chip that is not here."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder of the benchmarks on the path, as it is for its scripts."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


@pytest.fixture
def output_build(benchmarks):
    """The output kernel of linear attention in float32, as it is launched."""
    from builds.linear_attention import kernels, launches

    return next(launches(kernels.output_kernel, torch.float32, "masked decay, packed"))


def test_a_kernel_as_it_is_launched_is_in_order(output_build):
    from builds.build import compile_build

    row = compile_build(output_build, "sm_80")
    assert row["verdict"] == "ok"
    assert (row["target"], row["spilled_bytes"]) == ("sm_80", 0)
    assert 0 < row["registers"] <= 255
    assert row["shared_bytes"] > 0
    assert row["tensor_core_instructions"] > 0


def test_tiles_that_are_too_large_spill(output_build):
    from builds.build import compile_build

    large = replace(output_build, constants=output_build.constants | {"BLOCK_F": 64, "BLOCK_V": 64}, num_warps=4)
    row = compile_build(large, "sm_80")
    assert row["spilled_bytes"] > 0
    assert row["verdict"] == f"spills {row['spilled_bytes']} bytes"


def test_products_without_tensor_cores_and_too_much_shared_memory_are_faults(output_build):
    from builds.build import SHARED_BYTES, compile_build, faults

    exact = replace(output_build, constants=output_build.constants | {"PRECISION": "ieee", "BLOCK_F": 16})
    row = compile_build(exact, "sm_80")
    assert "does not use tensor cores" in row["verdict"]
    full = row | {"spilled_bytes": 0, "shared_bytes": SHARED_BYTES["sm_80"]}
    assert faults(full, tensor_cores=False) == []
    full["shared_bytes"] += 1
    assert faults(full, tensor_cores=False) == ["needs 166913 of 166912 bytes of shared memory"]
    assert faults(full | {"target": "sm_90"}, tensor_cores=False) == []


def test_the_table_is_written_and_a_fault_is_a_failure(benchmarks, output_build, monkeypatch, tmp_path):
    import compile_table
    from builds import linear_attention

    good = replace(output_build, targets=["sm_80"])
    bad = replace(good, constants=good.constants | {"BLOCK_F": 64, "BLOCK_V": 64}, num_warps=4)
    path = tmp_path / "new" / "table.csv"
    monkeypatch.setattr(sys, "argv", ["compile_table.py", str(path), "--only", "linear_attention"])
    monkeypatch.setattr(linear_attention, "builds", lambda: iter([good]))
    compile_table.main()
    monkeypatch.setattr(linear_attention, "builds", lambda: iter([good, bad]))
    with pytest.raises(SystemExit, match="1 of 2 builds"):
        compile_table.main()
    with path.open(newline="") as file:
        assert [row["verdict"][:6] for row in csv.DictReader(file)] == ["ok", "spills"]
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv"]


@pytest.mark.usefixtures("benchmarks")
def test_every_entry_of_the_tuning_table_of_block_sparse_attention_is_compiled():
    from builds import block_sparse

    from attn.core_kernels.sparsify.block_sparse.launch import TUNING

    listed = {(x.kernel.__name__, *x.case.split()) for x in block_sparse.builds() if "sm_80" in x.targets}
    assert listed == {(*entry, str(width)) for entry in TUNING for width in (64, 128, 256)}
