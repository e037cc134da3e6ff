"""The session for a GPU runs through without one, on small shapes in Triton's interpreter."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")


@pytest.mark.interpreter
@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1")
def test_a_dry_run_writes_both_tables(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks/gpu_session.py"
    run = subprocess.run(
        [sys.executable, script, "--dry-run", "--output", tmp_path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "test_linear_attention_and_its_gradients" in run.stdout
    rows = {path.name: list(csv.DictReader(path.read_text().splitlines())) for path in tmp_path.iterdir()}
    assert set(rows) == {"tuning_cpu.csv", "operators_cpu.csv"}
    assert len(rows["tuning_cpu.csv"]) == 16  # two tilings of four kernels in two dtypes
    assert all(row["status"] == "ok" and float(row["ratio_to_current"]) > 0 for row in rows["tuning_cpu.csv"])
    assert {row["operator"] for row in rows["operators_cpu.csv"]} == {"linear_attention"}
    assert all(row["status"] == "ok" for row in rows["operators_cpu.csv"])
