"""Start a package for a paper from the templates in ci/paper_template.

Usage: python ci/new_paper.py my-paper [module]

It makes packages/my-paper, with distribution attn-my-paper and import attn.my_paper, and locks the workspace again.
`module` is the name of the module that holds the method, a noun of the paper such as feature_maps.
"""

import datetime
import keyword
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from string import Template

ROOT = Path(__file__).parent.parent
TEMPLATES = ROOT / "ci" / "paper_template"
MODULES = ("adapters", "experiments", "training")

NEXT_STEPS = """\
packages/{paper} is there: `uv run nox -s tests -- {paper}` passes, and its ledger says not run. What to do next:
  1. claims.toml: the paper's identity, and its claims with baseline, control and seeds, before anything is measured.
  2. src/attn/{package}/{module}.py: the method in the paper's words; tests/test_{module}.py: its equations as loops.
  3. adapters.py: how it attaches to a model. training.py and __main__.py: how it is trained; delete what is not needed.
  4. experiments.py: a function per experiment of the ledger; packages/hedgehog shows plots and the paper tier.
  5. pyproject.toml: exactly what src imports, then `uv lock`; `uv run nox -s lint types` proves it.
  6. `uv run nox -s reproduce-{paper}`, and with `-- --repin` once the claims are judged.
  7. README.md: the card. `uv run nox -s pages docs` fills in its table and makes its page. CHANGELOG.md: a line."""


def problem(paper: str, module: str, root: Path) -> str | None:
    """What is wrong with the names, in one line, or None."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", paper):
        return f"the paper's name must be lower-case words joined by hyphens, like sparse-mimicry, got {paper!r}"
    if keyword.iskeyword(paper) or paper in ("core-kernels", "shared-eval"):
        return f"the paper's name must not be a Python keyword or another member, got {paper!r}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module) or module in MODULES:
        return f"the module's name must be an identifier other than {', '.join(MODULES)}, got {module!r}"
    if (root / "packages" / paper).exists():
        return f"packages/{paper} exists already"
    return None


def substitutions(paper: str, module: str, root: Path) -> dict[str, str]:
    """What the templates need: names from the arguments, versions from the members that exist."""
    shared = tomllib.loads((root / "shared-eval/pyproject.toml").read_text(encoding="utf-8"))
    requirements = [*shared["project"]["dependencies"], *shared["project"]["optional-dependencies"]["models"]]
    wanted = ("jsonargparse", "lightning", "torch", "transformers")
    lines = [line for name in wanted for line in requirements if re.match(rf"{name}\b(?!-)", line)]
    return {
        "paper": paper,
        "package": paper.replace("-", "_"),
        "module": module,
        "title": paper.replace("-", " ").capitalize(),
        "year": str(datetime.datetime.now(tz=datetime.UTC).year),
        "version": shared["project"]["version"],
        "python": shared["project"]["requires-python"],
        "backend": shared["build-system"]["requires"][0],
        "requirements": "\n".join(f'    "{line}",' for line in lines),
    }


def write_package(paper: str, module: str, root: Path) -> Path:
    """Fill in the templates below root/packages/paper, which appears whole or not at all."""
    values = substitutions(paper, module, root)
    folder = root / "packages" / paper
    unfinished = root / "packages" / f".{paper}"
    for template in sorted(TEMPLATES.rglob("*.template")):
        name = template.relative_to(TEMPLATES).as_posix().removesuffix(".template")
        name = name.replace("/package/", f"/{values['package']}/").replace("method.py", f"{module}.py")
        path = unfinished / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(template.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
    return unfinished.rename(folder)


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Make the package, lock the workspace and print what to do next; the exit code."""
    if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
        print("usage: nox -s new_paper -- my-paper [module]", file=sys.stderr)
        return 2
    paper, module = (*arguments, "attention")[:2]
    wrong = problem(paper, module, root)
    if wrong is not None:
        print(wrong, file=sys.stderr)
        return 2
    write_package(paper, module, root)
    # The order of imports and the breaks of lines depend on the length of the name.
    for command in ("ruff check --quiet --fix --select I", "ruff format --quiet"):
        subprocess.run([*command.split(), f"packages/{paper}"], cwd=root, check=True)
    if subprocess.run(["uv", "lock", "--quiet"], cwd=root, check=False).returncode != 0:
        print(f"packages/{paper} is written, but `uv lock` failed: mend that and run it again", file=sys.stderr)
        return 1
    print(NEXT_STEPS.format(paper=paper, package=paper.replace("-", "_"), module=module))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
