"""mini-cnn's labels, corruptions and gates against loops and planted models."""

from types import SimpleNamespace

import pytest
import torch

from attn.shared_eval.data.shapesworld import family, render
from attn.shared_eval.models import find_recipe
from attn.shared_eval.models.recipe import seeded_build
from attn.shared_eval.models.recipes.mini_cnn import ATTRIBUTES, LABELS, PAIRS, UNKNOWN, WORLD, labels, pixels


@pytest.fixture(scope="module")
def recipe():
    return find_recipe("mini-cnn")


def test_labels_say_what_the_scene_says():
    for index in range(60):
        scene = WORLD.scene("train", index)
        truth = dict(zip(LABELS, labels(scene).tolist(), strict=True))
        for shape in scene.objects:
            assert truth[shape.kind] == truth[shape.pattern] == 1
            assert truth[shape.color] == truth[f"{shape.color} {shape.kind}"] == (1 if scene.has_color else UNKNOWN)
        assert not scene.style or truth[scene.style] == 1
        if scene.has_color:
            shown = {(shape.color, shape.kind) for shape in scene.objects}
            assert {pair for pair in PAIRS if truth[" ".join(pair)] == 1} == shown
        counts = [name for name in LABELS if name.endswith(("object", "objects")) and truth[name] == 1]
        assert counts == [
            ["one object", "two objects", "three objects", "four objects", "five objects"][len(scene.objects) - 1]
        ]
    assert any(not WORLD.scene("train", index).has_color for index in range(60))


def test_pixels_are_channels_first_in_minus_one_to_one():
    image = render(family("basic").scene("train", 0), 64).image
    made = pixels(image.copy())
    assert made.shape == (3, 64, 64)
    assert made[2, 5, 9].item() == pytest.approx(image[5, 9, 2] / 127.5 - 1)


def test_a_batch_is_a_function_of_its_indices_and_some_pictures_are_corrupted(recipe):
    together, alone = recipe.batch(range(24)), recipe.batch([17])
    assert torch.equal(together["pixel_values"][17:18], alone["pixel_values"])
    clean = torch.stack([pixels(render(WORLD.scene("train", i), 64).image.copy()) for i in range(24)])
    untouched = (together["pixel_values"] == clean).flatten(1).all(1).sum().item()
    assert 4 <= untouched <= 20


def test_the_loss_is_the_mean_over_attributes_plus_that_over_pairs_without_unknown_colors(recipe):
    narrow = recipe.narrow()
    batch = narrow.batch(range(12))
    assert (batch["labels"] == UNKNOWN).any()
    model = seeded_build(narrow).eval()
    with torch.no_grad():
        logits = model(pixel_values=batch["pixel_values"]).logits.double()
        loss = narrow.loss(model, batch).item()
    sums = {True: [], False: []}
    for row, wanted in zip(logits, batch["labels"].tolist(), strict=True):
        for place, (logit, label) in enumerate(zip(row, wanted, strict=True)):
            if label != UNKNOWN:
                probability = 1 / (1 + (-logit).exp())
                sums[place < len(ATTRIBUTES)].append(-(probability if label else 1 - probability).log().item())
    assert loss == pytest.approx(sum(sum(part) / len(part) for part in sums.values()), rel=1e-5)


class Oracle(torch.nn.Module):
    """Knows the labels of the test scenes in order; wrong about kinds if ``colorblind``; unsure of pale pictures."""

    def __init__(self, *, colorblind=False):
        super().__init__()
        self.colorblind, self.place = colorblind, 0

    def forward(self, pixel_values):
        rows = []
        for image in pixel_values:
            truth = labels(WORLD.scene("test", self.place)).clamp(min=0).float()
            if self.colorblind:
                truth[len(ATTRIBUTES) :] = truth[len(ATTRIBUTES) :].unflatten(0, (10, 12)).roll(1, 1).flatten()
            rows.append(4 * (2 * truth - 1) * image.std())
            self.place += 1
        return SimpleNamespace(logits=torch.stack(rows))


def test_gates_tell_a_judge_from_one_that_binds_wrongly(recipe):
    assert recipe.average_precision(Oracle(), 50) == pytest.approx(1)
    assert recipe.kind_given_color(Oracle(), 50) == 1
    assert recipe.kind_given_color(Oracle(colorblind=True), 50) < 0.2
    assert recipe.average_precision(Oracle(colorblind=True), 50) == pytest.approx(1)  # attributes alone


def test_blur_costs_an_honest_judge_certainty_and_a_blind_one_none(recipe):
    class Honest(Oracle):
        def forward(self, pixel_values):
            out = super().forward(pixel_values)
            self.place %= 20
            return out

    def blind(pixel_values):
        return SimpleNamespace(logits=torch.zeros(len(pixel_values), len(LABELS)))

    assert recipe.loss_by_blur(Honest(), 20) > 0
    assert recipe.loss_by_blur(blind, 20) == 0
