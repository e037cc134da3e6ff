# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["nox[uv]>=2026.10", "nox-uv>=0.8"]
# ///
"""Every task of the repository: `uv run nox -l` lists them, `uv run nox -s NAME -- OPTIONS` runs one.

Each session has an environment of its own, made from uv.lock by `uv sync --locked` and kept, so that a second run only
checks it. `uv run noxfile.py -s NAME` does the same without the root project's environment.
"""

import os
from pathlib import Path

import nox
import nox_uv

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "types", "tests"]

ROOT = Path(__file__).parent
MEMBERS = {
    path.parent.name: path.parent.relative_to(ROOT).as_posix()
    for path in [*sorted(ROOT.glob("*/pyproject.toml")), *sorted(ROOT.glob("packages/*/pyproject.toml"))]
}
PAPERS = sorted(path.parent.name for path in ROOT.glob("packages/*/claims.toml"))
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # pytest-xdist's workers share the cores


def split_members(session: nox.Session) -> tuple[list[str], list[str]]:
    """Folders of the members that the arguments after `--` name, and the arguments left, which are the tool's own."""
    names = [argument for argument in session.posargs if argument in MEMBERS]
    options = [argument for argument in session.posargs if argument not in MEMBERS]
    if options and not options[0].startswith("-") and not Path(options[0].partition("::")[0]).exists():
        session.error(f"{options[0]!r} is no member and no path; the members are {', '.join(MEMBERS)}")
    return [MEMBERS[name] for name in names], options


@nox_uv.session(uv_groups=["test"], uv_all_packages=True, uv_all_extras=True)
def tests(session: nox.Session) -> None:
    """Unit tests of every member, with coverage; `-- hedgehog` for one member, then pytest's options."""
    folders, options = split_members(session)
    session.run(
        *["pytest", "-n", "auto", "--maxprocesses", "8", "--dist", "loadfile", "-m", "not gpu and not interpreter"],
        *["--cov", "--cov-report", "term:skip-covered"],
        *folders,
        *options,
        env=ONE_THREAD,
    )


@nox_uv.session(uv_groups=["lint"], uv_all_packages=True, uv_all_extras=True)
def lint(session: nox.Session) -> None:
    """Style and format (ruff), declared dependencies (deptry), stale README tables, pre-commit's configuration."""
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("python", "ci/check_dependencies.py", *MEMBERS.values())
    session.run("pre-commit", "validate-config", ".pre-commit-config.yaml")


@nox_uv.session(uv_groups=["dev", "types"], uv_all_packages=True, uv_all_extras=True)
def types(session: nox.Session) -> None:
    """Static types of every member and of the tooling (mypy); `-- hedgehog` for one member."""
    folders, options = split_members(session)
    sources = [f"{folder}/src" for folder in MEMBERS.values()]
    chosen = [f"{folder}/src" for folder in folders] or [*sources, "noxfile.py", "ci"]
    # Members share the namespace `attn`: mypy finds the name of a module by the longest of these roots.
    session.run("mypy", *options, *chosen, env={"MYPYPATH": os.pathsep.join(sources)})


if __name__ == "__main__":
    nox.main()
