"""The command line: help, one clear line for each mistake, and the summary of several papers."""

import json
import subprocess
import sys

import pytest

from attn.shared_eval.claims.commands import main


@pytest.mark.parametrize("command", ["reproduce", "pages", "summary"])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    printed = capsys.readouterr().out
    expected = {
        "reproduce": [
            "--tier",
            "--claim",
            "--seeds",
            "--device",
            "--data-root",
            "--out",
            "--fresh",
            "--repin",
            "Exit codes",
        ],
        "pages": ["--check", "--root"],
        "summary": ["folders"],
    }
    assert all(option in printed for option in expected[command])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--claim", "x"], "claims.toml: no claim 'x'; the claims are: half"),
        (["--seeds", "0"], "--seeds must be a positive number"),
        (["--seeds", "1", "1"], "--seeds must be a positive number"),
        (["--seeds", "1"], '--seeds must be at least two: claim "half" is judged by its interval'),
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, got tpu"),
        (["--workers", "0"], "--workers must be positive, got 0"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(toy, more, says, capsys):
    toy.write(toy.mini("half", judge="interval"))
    assert main(toy.command(*more)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("more", [["--tier", "huge"], ["--seeds", "x"], ["--colour", "red"]])
def test_an_option_that_does_not_parse_exits_with_2(toy, more):
    with pytest.raises(SystemExit) as caught:
        main(toy.command(*more))
    assert caught.value.code == 2


def test_a_broken_ledger_is_one_line(toy, capsys):
    toy.write(toy.mini("half", expect=["method <<= 1"]))
    assert main(toy.command()) == 2
    error = capsys.readouterr().err
    assert (
        error == f"error: {toy.ledger}: claim \"half\": mini.expect[0]: cannot parse 'method <<= 1': invalid syntax\n"
    )


def test_a_folder_without_a_ledger_is_one_line(toy, capsys):
    assert main(["reproduce", str(toy.root)]) == 2
    assert capsys.readouterr().err == f"error: {toy.root / 'claims.toml'}: no such file\n"


def test_a_package_that_is_not_installed_is_named(toy, capsys):
    toy.write(toy.mini("half"))
    moved = toy.folder.rename(toy.folder.with_name("other-paper"))
    assert main(["reproduce", str(moved), "--out", str(toy.out)]) == 2
    assert "no package attn.other_paper: install it with uv sync --package attn-other-paper" in capsys.readouterr().err


def write_report(folder, *, verdict="holds", worse=False, missing=False):
    claim = {
        "id": "half", "statement": "", "source": "", "published": {"text": "1", "verified": True}, "experiment": None,
        "metric": None, "seeds": [], "judge": None, "show": [], "recorded": "holds", "worse": worse, "missing": missing,
        "judgement": {"verdict": verdict}, "seconds": 0, "peak_memory_mib": 0, "data": {}, "plots": [],
    }  # fmt: skip
    report = {
        "schema_version": 1, "paper": folder.name, "title": "", "tier": "mini", "device": "cpu", "date": "2026-01-02",
        "hardware": None, "versions": {}, "seconds": 7, "claims": [claim],
    }  # fmt: skip
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report))
    return str(folder)


def test_the_summary_counts_verdicts_and_exits_with_the_worst(tmp_path, capsys):
    good = write_report(tmp_path / "good")
    bad = write_report(tmp_path / "bad", verdict="fails", worse=True)
    absent = write_report(tmp_path / "absent", verdict="not run", missing=True)
    assert main(["summary", good]) == 0
    assert main(["summary", good, absent]) == 3
    assert main(["summary", good, absent, bad]) == 1
    assert "half" in capsys.readouterr().out
    assert main(["summary", good, absent, bad, str(tmp_path / "none")]) == 2
    assert "no readable report.json" in capsys.readouterr().out


def test_ledger_report_and_pages_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import attn.shared_eval.claims.commands, attn.shared_eval.claims.pages, attn.shared_eval.claims.report\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
