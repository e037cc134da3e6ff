"""The pictures show the numbers that they are given, where they belong."""

import re

import pytest
import torch

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402

from attn.core_kernels import BlockLayout, pictures  # noqa: E402


@pytest.fixture
def axes():
    return Figure().subplots()


def pixels_of(axes):
    """What the axes look like, without ticks and frame, as bytes of red, green and blue."""
    axes.set_axis_off()
    axes.figure.subplots_adjust(0, 0, 1, 1)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    return torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8).view(
        *reversed(canvas.get_width_height()), 4
    )[..., :3]


def test_a_map_shows_its_weights_under_the_tokens_own_names(axes):
    weights = torch.tensor([[0.0, 1.0], [0.25, 0.75], [1.0, 0.0]])
    image = pictures.draw_map(axes, weights, row_labels=["a", "b", "$c"], column_labels=["x", "y"])
    assert torch.equal(torch.as_tensor(image.get_array()), weights)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", r"\$c"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["x", "y"]
    assert image.get_clim() == (0, 1)


def test_maps_with_one_largest_weight_can_be_compared(axes):
    assert pictures.draw_map(axes, torch.full((2, 2), 0.1), largest=0.5).get_clim() == (0, 0.5)


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_overlay_leaves_the_image_alone_but_where_the_weight_is(axes, channels_first, dtype):
    white = torch.full((3, 40, 60), 255 if dtype == torch.uint8 else 1, dtype=dtype)
    weights = torch.zeros(4, 6)
    weights[0, 5] = 1
    pictures.draw_overlay(axes, white if channels_first else white.permute(1, 2, 0), weights, opacity=1)
    axes.figure.set_size_inches(6, 4)
    seen = pixels_of(axes)
    changed = (seen != 255).any(-1)
    rows, columns = seen.shape[0], seen.shape[1]
    assert changed[: rows // 4, -columns // 6 :].float().mean() > 0.5
    assert not changed[rows // 2 :].any()
    assert not changed[:, : columns // 2].any()


def test_an_even_overlay_is_clear(axes):
    drawn = pictures.draw_overlay(axes, torch.ones(3, 8, 8), torch.full((2, 2), 0.3))
    assert not drawn.get_alpha().any()


def test_a_layer_curve_goes_through_the_means_of_the_heads(axes):
    curve = pictures.draw_layer_curve(axes, {3: torch.tensor([0.0, 2.0]), 1: torch.tensor([1.0, 2.0, 6.0])}, label="m")
    assert curve.get_xydata().tolist() == [[1, 3], [3, 1]]
    points = axes.collections[0].get_offsets().tolist()
    assert sorted(points) == [[1, 1], [1, 2], [1, 6], [3, 0], [3, 2]]
    assert curve.get_label() == "m"


def test_a_layout_shows_its_blocks_where_the_tokens_are(axes):
    blocks = torch.tensor([[[True, False, False], [True, True, False]], [[False, True, True], [True, False, True]]])
    layout = BlockLayout.from_blocks(blocks, 7, 11, block_size=4)
    image = pictures.draw_block_layout(axes, layout, head=1)
    assert torch.equal(torch.as_tensor(image.get_array()) > 0, blocks[1])
    assert image.get_extent() == [0, 12, 8, 0]
    assert axes.get_xlim() == (0, 11)
    assert axes.get_ylim() == (7, 0)


LAYOUT = BlockLayout.from_blocks(torch.ones(2, 2, dtype=torch.bool), 7, 8, block_size=4)
IMAGE, WEIGHTS = torch.ones(3, 4, 5), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("draw", "wrong", "error", "message"),
    [
        (pictures.draw_map, {"weights": [[1.0]]}, TypeError, "be a tensor, got list"),
        (pictures.draw_map, {"weights": torch.ones(2)}, ValueError, "be a matrix of at least one entry, got [2]"),
        (pictures.draw_map, {"weights": torch.ones(2, 0)}, ValueError, "be a matrix of at least one entry, got [2, 0]"),
        (pictures.draw_map, {"row_labels": "abc"}, ValueError, "have 2 labels, got 3"),
        (pictures.draw_map, {"column_labels": "a"}, ValueError, "have 3 labels, got 1"),
        (pictures.draw_overlay, {"image": "file"}, TypeError, "be a tensor, got str"),
        (pictures.draw_overlay, {"image": torch.ones(4, 5)}, ValueError, "[height, width, 3], got [4, 5]"),
        (pictures.draw_overlay, {"weights": torch.ones(2)}, ValueError, "be a matrix of at least one entry, got [2]"),
        (pictures.draw_overlay, {"opacity": float("nan")}, ValueError, "lie in (0, 1], got nan"),
        (pictures.draw_block_layout, {"layout": WEIGHTS}, TypeError, "be a BlockLayout, got Tensor"),
        (pictures.draw_block_layout, {"head": 1}, ValueError, "lie in [0, 1), got 1"),
        (pictures.draw_block_layout, {"batch": -1}, ValueError, "lie in [0, 1), got -1"),
        (pictures.draw_layer_curve, {"by_layer": {}}, ValueError, "have at least one layer, got none"),
        (pictures.draw_layer_curve, {"by_layer": {2: 0.5}}, TypeError, "be a tensor, got float"),
        (pictures.draw_layer_curve, {"by_layer": {2: WEIGHTS}}, ValueError, "have shape [heads], got [2, 3]"),
    ],
)
def test_an_error_names_the_argument(axes, draw, wrong, error, message):
    right = {
        pictures.draw_map: {"weights": WEIGHTS},
        pictures.draw_overlay: {"image": IMAGE, "weights": WEIGHTS},
        pictures.draw_block_layout: {"layout": LAYOUT},
    }
    with pytest.raises(error, match=f"{next(iter(wrong))}.* must .*{re.escape(message)}"):
        draw(axes, **right.get(draw, {}) | wrong)
