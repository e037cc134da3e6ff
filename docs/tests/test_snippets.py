"""The documents keep their word: marked snippets run, and the sessions that they name exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "core-kernels/*.md", "shared-eval/*.md", "packages/*/*.md")
    for page in ROOT.glob(pattern)
    if "_build" not in page.parts
)
RUNNABLE = re.compile(r"<!-- run -->\n+```python\n(.*?)```", re.DOTALL)
SESSION_CALL = re.compile(r"\bnox -s ([\w-]+(?: [\w-]+)*?)(?= -- |`|$|\s*[#\"]|  )", re.MULTILINE)
EXAMPLES = {"NAME", "reproduce-my-paper", "reproduce-s2-attention"}  # names that documents make up


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_of(page: Path) -> str:
    """The runnable blocks of a page as one program, each line where it stands in the page."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in RUNNABLE.finditer(text):
        start = text.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[start : start + len(code)] = code
    return "\n".join(lines)


def sessions() -> set[str]:
    """Names of the sessions, read from the noxfile without nox: its decorated functions, and one for each ledger."""
    module = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    named = {
        node.name
        for node in module.body
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if "session" in ast.unparse(decorator)
    }
    return named | {f"reproduce-{path.parent.name}" for path in ROOT.glob("packages/*/claims.toml")}


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page).strip()], ids=page_name)
@pytest.mark.filterwarnings("default")
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": page.stem}
    exec(compile(code_of(page), str(page), "exec"), names)
    if page.name == "tutorial.md":
        assert names["softmax"] < names["distilled"] < names["undistilled"]


def test_the_tutorial_is_run() -> None:
    assert "distill(" in code_of(ROOT / "docs/tutorial.md")


def test_named_sessions_exist() -> None:
    known = sessions() | EXAMPLES
    named = {
        (page_name(page), name)
        for page in PAGES
        for call in SESSION_CALL.findall(page.read_text(encoding="utf-8"))
        for name in call.split()
    }
    assert ("README.md", "reproduce-hedgehog") in named
    assert not {(page, name) for page, name in named if name not in known}
