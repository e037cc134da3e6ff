import pytest

from attn.core_kernels.observe.softmax_map import tiles


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of at most three rows and few heads, so that a dozen tokens cross their borders."""
    monkeypatch.setattr(tiles, "TILE_ENTRIES", 64)
    monkeypatch.setattr(tiles, "FEWEST_ROWS", 2)
    monkeypatch.setattr(tiles, "MOST_ROWS", 3)
