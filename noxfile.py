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


def reproduction(paper: str) -> None:
    """Define the session that reproduces the claims of one paper in an environment holding just its package."""

    def session_of_paper(session: nox.Session) -> None:
        session.run("python", "-m", "attn.shared_eval.claims", "reproduce", f"packages/{paper}", *session.posargs)

    session_of_paper.__doc__ = (
        f"Claims of {paper}: measure, compare with the ledger, draw; `-- --help` for the options."
    )
    nox_uv.session(session_of_paper, name=f"reproduce-{paper}", uv_packages=[f"attn-{paper}"])


for paper_with_ledger in PAPERS:
    reproduction(paper_with_ledger)


@nox.session(venv_backend="none")
def reproduce(session: nox.Session) -> None:
    """Claims of every paper, then the pages made from them; goes on after a paper that fails, and fails at the end."""
    for paper in PAPERS:
        session.notify(f"reproduce-{paper}", posargs=session.posargs)
    session.notify("pages", posargs=[])
    session.notify("summary", posargs=[])


@nox_uv.session(uv_packages=["attn-shared-eval"])
def summary(session: nox.Session) -> None:
    """One table of the verdicts in results/, of all papers that were reproduced here."""
    folders = [path.parent.as_posix() for path in sorted(Path("results").glob("*/*/report.json"))]
    if not folders:
        session.skip("results/ holds no report yet")
    session.run("python", "-m", "attn.shared_eval.claims", "summary", *folders)


@nox_uv.session(uv_packages=["attn-shared-eval"])
def pages(session: nox.Session) -> None:
    """Results pages and the tables in the READMEs, from the ledgers; `-- --check` only says which are stale."""
    session.run("python", "-m", "attn.shared_eval.claims", "pages", *session.posargs)


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
    session.run("python", "-m", "attn.shared_eval.claims", "pages", "--check")
    session.run("pre-commit", "validate-config", ".pre-commit-config.yaml")


@nox_uv.session(uv_groups=["dev", "types"], uv_all_packages=True, uv_all_extras=True)
def types(session: nox.Session) -> None:
    """Static types of every member and of the tooling (mypy); `-- hedgehog` for one member."""
    folders, options = split_members(session)
    sources = [f"{folder}/src" for folder in MEMBERS.values()]
    chosen = [f"{folder}/src" for folder in folders] or [*sources, "noxfile.py", "ci"]
    # Members share the namespace `attn`: mypy finds the name of a module by the longest of these roots.
    session.run("mypy", *options, *chosen, env={"MYPYPATH": os.pathsep.join(sources)})


@nox_uv.session(uv_groups=["docs"], uv_all_packages=True, uv_all_extras=True)
def docs(session: nox.Session) -> None:
    """The site into docs/_build/html (sphinx), with warnings as errors."""
    session.run("sphinx-build", "--fail-on-warning", "--keep-going", *session.posargs, "docs", "docs/_build/html")


@nox_uv.session(uv_groups=["test"], uv_packages=["attn-core-kernels"])
def kernels(session: nox.Session) -> None:
    """Triton kernels without a GPU: in the interpreter, and compiled ahead of time (table of registers, spills)."""
    if not (ROOT / "core-kernels/benchmarks/compile_table.py").exists():
        session.skip("core-kernels has no Triton kernels yet")
    tests_in_interpreter = ["pytest", "-n", "auto", "--maxprocesses", "8", "-m", "interpreter", "core-kernels"]
    session.run(*tests_in_interpreter, *session.posargs, env=ONE_THREAD | {"TRITON_INTERPRET": "1"})
    session.run("python", "core-kernels/benchmarks/compile_table.py")


def with_installed_torch(session: nox.Session, *command: str) -> None:
    """Run in the locked environment of core-kernels, or under `--no-venv` with the torch installed beside nox."""
    if session.venv_backend == "none":
        session.run(*command, env={"PYTHONPATH": "core-kernels/src"}, external=True)
        return
    environment = {"UV_PROJECT_ENVIRONMENT": session.virtualenv.location}
    sync = [
        "uv",
        "sync",
        "--locked",
        "--no-default-groups",
        "--group=test",
        "--package=attn-core-kernels",
        "--all-extras",
    ]
    session.run_install(*sync, env=environment)
    session.run(*command)


@nox.session
def kernels_gpu(session: nox.Session) -> None:
    """Triton kernels on a CUDA device; with `--no-venv` under the torch and triton installed beside nox."""
    with_installed_torch(session, "python", "-m", "pytest", "-m", "gpu", "core-kernels", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time and memory of every operator beside what one would use instead: CSV and plots; `--no-venv` as above."""
    with_installed_torch(session, "python", "core-kernels/benchmarks/measure.py", *session.posargs)


@nox_uv.session(uv_all_packages=True, uv_all_extras=True)
def train_mini(session: nox.Session) -> None:
    """Train a small model again: `-- NAME`, then `-- NAME --accept` ships it if it passes its gates."""
    session.run("python", "-m", "attn.shared_eval.models", "train", *session.posargs)


@nox_uv.session(uv_groups=["lint"])
def new_paper(session: nox.Session) -> None:
    """Start a package for a paper: `-- my-paper`; its tests pass at once, and its ledger says not run."""
    session.run("python", "ci/new_paper.py", *session.posargs)
    session.notify("pages", posargs=[])


if __name__ == "__main__":
    nox.main()
