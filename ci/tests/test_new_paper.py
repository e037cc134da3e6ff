"""Names that new_paper refuses, and what it writes; ci/new_paper.sh runs the tests of the package that it makes."""

import ast
import shutil
import tomllib
from pathlib import Path

import new_paper
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "packages" / "hedgehog").mkdir(parents=True)
    (tmp_path / "shared-eval").mkdir()
    shutil.copy(ROOT / "shared-eval/pyproject.toml", tmp_path / "shared-eval")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["Hedgehog"],
            "the paper's name must be lower-case words joined by hyphens, like sparse-mimicry, got 'Hedgehog'",
        ),
        (
            ["my_paper"],
            "the paper's name must be lower-case words joined by hyphens, like sparse-mimicry, got 'my_paper'",
        ),
        (
            ["../escape"],
            "the paper's name must be lower-case words joined by hyphens, like sparse-mimicry, got '../escape'",
        ),
        (["lambda"], "the paper's name must not be a Python keyword or another member, got 'lambda'"),
        (["core-kernels"], "the paper's name must not be a Python keyword or another member, got 'core-kernels'"),
        (["hedgehog"], "packages/hedgehog exists already"),
        (
            ["mimicry", "training"],
            "the module's name must be an identifier other than adapters, experiments, training, got 'training'",
        ),
        ([], "usage: nox -s new_paper -- my-paper [module]"),
        (["--help"], "usage: nox -s new_paper -- my-paper [module]"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(workspace, capsys, arguments, line):
    before = sorted(workspace.rglob("*"))
    assert new_paper.main(arguments, workspace) == 2
    assert capsys.readouterr() == ("", f"{line}\n")
    assert sorted(workspace.rglob("*")) == before


def test_every_template_is_filled_in(workspace):
    folder = new_paper.write_package("sparse-mimicry", "feature_maps", workspace)
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert {"src/attn/sparse_mimicry/feature_maps.py", "tests/test_feature_maps.py", "claims.toml"} <= files.keys()
    assert not any("$" in text for text in files.values())
    assert len(files) == len(list(new_paper.TEMPLATES.rglob("*.template")))
    for name, text in files.items():
        if name.endswith(".py"):
            ast.parse(text, name)
        elif name.endswith(".toml"):
            tomllib.loads(text)


def test_the_requirements_are_those_of_shared_eval(workspace):
    project = tomllib.loads((new_paper.write_package("mimicry", "maps", workspace) / "pyproject.toml").read_text())[
        "project"
    ]
    names = [line.partition(">=")[0] for line in project["dependencies"]]
    assert names == ["attn-shared-eval", "jsonargparse[signatures]", "lightning", "torch", "transformers"]
