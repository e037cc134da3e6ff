"""Check that every member declares exactly what it imports.

deptry compares imports with declarations by top-level module, and all members share the namespace `attn`; so it is told
to leave `attn` out, and the members' imports of one another are compared here, with the direction that they must have:
packages/* -> shared-eval -> core-kernels.

Usage: python ci/check_dependencies.py MEMBER_FOLDER...
"""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

SHARED = ["attn-core-kernels", "attn-shared-eval"]  # in the order of the layers


def declared_members(project: dict) -> set[str]:
    """Distributions `attn-*` among the dependencies and extras of a `[project]` table."""
    extras = project.get("optional-dependencies", {})
    requirements = [*project.get("dependencies", []), *(line for lines in extras.values() for line in lines)]
    names = {re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0] for requirement in requirements}
    return {name for name in names if name.startswith("attn-")}


def imported_members(source: Path) -> dict[str, str]:
    """Distributions `attn-*` that the files under `source` import, each with one place `file:line`."""
    places: dict[str, str] = {}
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    modules = [alias.name for alias in names]
                case ast.ImportFrom(module="attn", level=0, names=names):
                    modules = [f"attn.{alias.name}" for alias in names]
                case ast.ImportFrom(module=str(module), level=0):
                    modules = [module]
                case _:
                    continue
            for parts in (module.split(".") for module in modules if module.startswith("attn.")):
                places.setdefault("attn-" + parts[1].replace("_", "-"), f"{path}:{node.lineno}")
    return places


def check_members(folder: Path, project: dict) -> list[str]:
    """What is wrong with how the member in `folder` depends on other members, one line each."""
    name = project["name"]
    allowed = SHARED[: SHARED.index(name)] if name in SHARED else SHARED
    declared = declared_members(project) - {name}
    imported = imported_members(folder / "src")
    imported.pop(name, None)
    undeclared = [
        f"{place}: {name} imports {other}, but does not declare it"
        for other, place in imported.items()
        if other not in declared
    ]
    unused = [
        f"{folder}/pyproject.toml: {name} declares {other}, but does not import it"
        for other in sorted(declared - imported.keys())
    ]
    upward = [
        f"{place}: {name} must not import {other}: dependencies point from papers to shared-eval to core-kernels"
        for other, place in imported.items()
        if other not in allowed
    ]
    return undeclared + unused + upward


def check_distributions(folder: Path, pyproject: dict) -> bool:
    """Run deptry on the member in `folder`; true if it found nothing."""
    ignores = pyproject.get("tool", {}).get("deptry", {}).get("per_rule_ignores", {})
    unused = [*ignores.get("DEP002", []), *SHARED]
    command = ["deptry", "src", "--known-first-party", "attn", "--per-rule-ignores", f"DEP002={'|'.join(unused)}"]
    return subprocess.run(command, cwd=folder, check=False).returncode == 0


def main(folders: list[str]) -> int:
    """Check every folder and return the exit code."""
    sound = True
    for folder in map(Path, folders):
        pyproject = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        problems = check_members(folder, pyproject["project"])
        for problem in problems:
            print(problem, file=sys.stderr)
        print(f"{folder}:", end=" ", flush=True)
        sound = check_distributions(folder, pyproject) and not problems and sound
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
