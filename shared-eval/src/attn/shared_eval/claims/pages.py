"""Pages made from the ledgers."""

from pathlib import Path


def render(root: Path, *, write: bool) -> list[Path]:
    """Placeholder."""
    raise NotImplementedError
