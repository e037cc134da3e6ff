"""The documents keep their word: marked snippets run, commands are understood, links lead somewhere."""

import ast
import importlib
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import new_paper
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from attn.hedgehog.__main__ import main as hedgehog
from attn.shared_eval.claims.commands import parser as claims_parser
from attn.shared_eval.data import byte_tokenizer
from attn.shared_eval.models.__main__ import parser as models_parser

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "core-kernels/*.md", "shared-eval/*.md", "packages/*/*.md")
    for page in ROOT.glob(pattern)
    if "_build" not in page.parts
)
RUNNABLE = re.compile(r"<!-- run -->\n+```python\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"^```(?:console|bash|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:uv run (?:nox|python)|nox|python -m|\.ci/run) [^`]+)`")
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)(?:#[^)]*)?\)")
MADE_UP = {"my-paper": "hedgehog", "s2-attention": "hedgehog", "<paper>": "hedgehog", "NAME": "mini-bert"}


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_of(page: Path) -> str:
    """The runnable blocks of a page as one program, each line where it stands in the page."""
    text = text_of(page)
    lines = [""] * (text.count("\n") + 1)
    for block in RUNNABLE.finditer(text):
        start = text.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[start : start + len(code)] = code
    return "\n".join(lines)


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which ``from_pretrained("gpt2")`` finds a GPT-2, if a narrow one."""
    tokenizer = byte_tokenizer()
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=len(tokenizer), eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page).strip()], ids=page_name)
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("users_folder")
def test_snippets_run(page: Path) -> None:
    torch.manual_seed(0)
    texts = ["The quick brown fox jumps over the lazy dog."] * 4
    names: dict = {"__name__": page.stem, "texts": texts, "held_out_texts": texts}
    exec(compile(code_of(page), str(page), "exec"), names)
    if page.name == "tutorial.md":
        assert names["softmax"] < names["finetuned"] < names["distilled"] < names["undistilled"]


def commands(page: Path) -> list[str]:
    """The command lines that a page shows, in blocks and in the text."""
    text = text_of(page)
    found = []
    for block in CONSOLE.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        found += [line.removeprefix("$ ") for line in lines if line.strip() and not line.startswith("#")]
    return found + INLINE.findall(CONSOLE.sub("", text))


@cache
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


def understand(words: list[str]) -> None:
    """Give a command to what would parse it, without running it.

    Raises:
        AssertionError: if it names what does not exist.
        SystemExit: with a code, if its parser refuses it.
    """
    match words:
        case ["uv", "run", *rest]:
            while rest[0].startswith("-"):
                rest = rest[2:] if rest[0] in ("--group", "--package", "--extra") else rest[1:]
            understand(rest)
        case ["nox", *rest]:
            split = rest.index("--") if "--" in rest else len(rest)
            understand_nox(rest[:split], rest[split + 1 :])
        case ["python", "-m", "attn.shared_eval.claims", *options]:
            parse(claims_parser(), options)
        case ["python", "-m", "attn.shared_eval.models", *options]:
            parse(models_parser(), options)
        case ["python", "-m", "attn.hedgehog", *options]:
            with pytest.raises(SystemExit) as stopped:
                hedgehog([*options, "--print_config"])
            assert stopped.value.code == 0
        case ["uv", "pip", "install", *folders]:
            assert all((ROOT / folder / "pyproject.toml").exists() for folder in folders)
        case [".ci/run", *steps]:
            assert all(f"[{step}]=" in (ROOT / ".ci/run").read_text(encoding="utf-8") for step in steps)
        case ["uv" | "python" | "git" | "pre-commit", *paths]:
            assert all((ROOT / path).exists() for path in paths if "/" in path)
        case _:
            raise AssertionError(f"no test knows how to read {shlex.join(words)!r}")


def understand_nox(options: list[str], passed_on: list[str]) -> None:
    if options in (["-l"], []):
        return
    assert options[0] == "-s"
    names = [option for option in options[1:] if not option.startswith("-")]
    assert set(names) <= sessions(), f"no session {set(names) - sessions()}"
    for name in names:
        if name.startswith("reproduce"):
            parse(claims_parser(), ["reproduce", "packages/hedgehog", *passed_on])
        elif name == "train_mini" and passed_on:
            parse(models_parser(), ["train", *passed_on])
        elif name in ("pages", "summary") and passed_on:
            parse(claims_parser(), [name, *passed_on])
        elif name == "new_paper":
            assert new_paper.problem(passed_on[0], [*passed_on, "method"][1], ROOT) is None


def parse(parser, arguments: list[str]) -> None:
    try:
        parser.parse_args(arguments)
    except SystemExit as stopped:  # --help stops with 0
        if stopped.code != 0:
            raise AssertionError(f"refused: {shlex.join(arguments)}") from None


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=page_name)
@pytest.mark.filterwarnings("default")
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["python"])
    for command in commands(page):
        if "-- my-paper" not in command:
            for made_up, real in MADE_UP.items():
                command = command.replace(made_up, real)
        understand(shlex.split(command, comments=True))


@pytest.mark.parametrize(
    "command",
    [
        "nox -s reproduce-nothing",
        "nox -s reproduce-hedgehog -- --no-such-option",
        "nox -s reproduce-hedgehog -- --tier big",
        "nox -s train_mini -- mini-bert --acept",
        "uv run nox -s new_paper -- My_Paper",
        "python -m attn.hedgehog fit --config packages/hedgehog/configs/recall.yaml --trainer.acelerator gpu",
        "python -m attn.hedgehog fit --config packages/hedgehog/configs/no_such_file.yaml",
        "python ci/no_such_script.py",
        ".ci/run no_such_step",
        "uv pip install ./no-such-member",
        "conda install attn",
    ],
)
def test_a_wrong_command_is_noticed(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(AssertionError):
        understand(shlex.split(command))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_files(page: Path) -> None:
    links = LINK.findall(re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize(
    "package",
    ["core_kernels", "core_kernels.models", "hedgehog", "shared_eval.claims", "shared_eval.data", "shared_eval.models"],
)
def test_reference_has_every_public_name(package: str) -> None:
    name = f"attn.{package}"
    page = ROOT / "docs/reference" / f"{package.partition('.')[0].replace('_', '-')}.md"
    section = re.split(r"currentmodule:: (?=attn)", text_of(page))
    documented = {
        entry
        for part in section
        if part.split("\n", 1)[0] == name
        for entry in re.findall(r"^\.\. (?:auto\w+|py:data):: (\w+)", part, re.MULTILINE)
    }
    module, above = importlib.import_module(name), importlib.import_module(name.rpartition(".")[0])
    # What the package above has too is described there.
    assert documented == {own for own in module.__all__ if getattr(above, own, None) is not getattr(module, own)}
