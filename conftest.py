"""Options and fixtures of every member's tests."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for all tests."""
    parser.addoption("--data-root", type=Path, help="folder with real data sets; tests that want one skip without it")


@pytest.fixture
def data_root(request: pytest.FixtureRequest) -> Path:
    """The folder given as ``--data-root``; skips the test where it is not given."""
    root: Path | None = request.config.getoption("--data-root")
    if root is None:
        pytest.skip("needs real data: pytest --data-root FOLDER")
    return root
