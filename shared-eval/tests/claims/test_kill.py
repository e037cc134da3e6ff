"""A run that is killed with SIGKILL, and the one after it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_run_leaves_no_process_and_resumes_without_repeating_what_is_finished(toy):
    toy.write(
        toy.mini(
            "slow",
            experiment="slow",
            seeds=3,
            expect=["value <= control"],
            control=["control >= value"],
            show=["value"],
        )
    )
    command = [sys.executable, "-m", "attn.shared_eval.claims", *toy.command("--workers", "2")]
    runs = toy.out / "toy-paper" / "mini" / "runs" / "slow"
    with subprocess.Popen(command, env=toy.environment, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: len(toy.calls) == 3 and len(list(runs.glob("*/outcome.json"))) == 2, 300)
        workers = children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, workers)), 60)
    stored = {path: path.read_bytes() for path in runs.glob("*/outcome.json")}

    finished = subprocess.run(command, env=toy.environment, check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert toy.calls == ["slow 0", "slow 1", "slow 1", "slow 2"]
    assert {path: path.read_bytes() for path in stored} == stored
    (claim,) = json.loads((runs.parents[1] / "report.json").read_text())["claims"]
    figures = {name: figure["values"] for name, figure in claim["judgement"]["figures"].items()}
    assert figures["start"] == [0, 7, 0]  # seed 1 went on from its checkpoint
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    assert figures["value"] == [torch.randn((), generator=generator).item() for generator in generators]
    assert not list(runs.glob("*/work"))
