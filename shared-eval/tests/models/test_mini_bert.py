"""mini-bert's data and losses against loops over the reviews."""

import math

import pytest
import torch

from attn.shared_eval.data import reviews
from attn.shared_eval.models import find_recipe
from attn.shared_eval.models.recipe import seeded_build
from attn.shared_eval.models.recipes.mini_bert import sinusoids
from attn.shared_eval.models.training import RecipeModule


@pytest.fixture(scope="module", params=["mini-bert", "mini-bert-noisy"])
def recipe(request):
    return find_recipe(request.param).narrow()


def test_an_epoch_visits_every_review_once_in_its_own_order(recipe):
    size = recipe.train_reviews
    first, second = (recipe.batch(range(epoch * size, (epoch + 1) * size))["input_ids"].tolist() for epoch in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == sorted(recipe.training_set["input_ids"].tolist())


def test_tags_mark_the_cue_phrases(recipe):
    texts = reviews("train", recipe.train_reviews, label_noise=recipe.label_noise)
    columns = recipe.training_set
    for row, review in enumerate(texts):
        tags = [0] * (2 + len(review.text.split()))
        for start, stop in review.spans:
            for word in range(start, stop):
                tags[word + 1] = 2 if review.label else 1
        assert columns["tags"][row].tolist() == tags + [-100] * (columns["tags"].shape[1] - len(tags))
        assert columns["attention_mask"][row].sum() == len(tags)


def test_a_tenth_of_the_noisy_labels_is_flipped():
    size = find_recipe("mini-bert").train_reviews
    clean, noisy = (find_recipe(name).training_set["labels"] for name in ("mini-bert", "mini-bert-noisy"))
    assert abs((clean != noisy).float().mean().item() - 0.1) < 4 * math.sqrt(0.09 / size)


def test_the_training_loss_is_the_class_and_the_weighted_tags(recipe):
    module = RecipeModule(recipe).double()
    batch = recipe.batch(range(4))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = module.model(**inputs, output_hidden_states=True)
        tagger = module.heads["tagger"](output.hidden_states[-1])
        total = recipe.training_loss(module.model, module.heads, batch).item()
    classes = sum(-output.logits[i].log_softmax(-1)[batch["labels"][i]].item() for i in range(4)) / 4
    above, below = 0.0, 0.0
    for i, row in enumerate(batch["tags"].tolist()):
        for j, tag in enumerate(row):
            if tag >= 0:
                weight = 1.0 if tag else 0.2
                above += weight * -tagger[i, j].log_softmax(-1)[tag].item()
                below += weight
    assert total == pytest.approx(classes + above / below, rel=1e-6)
    assert recipe.loss(module.model, batch).item() == pytest.approx(classes, rel=1e-6)


def test_the_tagger_is_trained_and_not_part_of_the_model(recipe):
    module = RecipeModule(recipe)
    recipe.training_loss(module.model, module.heads, recipe.batch(range(4))).backward()
    assert module.heads["tagger"].weight.grad.abs().sum() > 0
    assert not any("tagger" in name for name in module.model.state_dict())


def test_positions_start_as_sinusoids(recipe):
    table = sinusoids(7, 6)
    for position in range(7):
        for k in range(3):
            angle = position / 10000 ** (2 * k / 6)
            assert table[position, k].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 3 + k].item() == pytest.approx(math.cos(angle), abs=1e-6)
    positions = seeded_build(recipe).bert.embeddings.position_embeddings.weight
    torch.testing.assert_close(positions, 0.3 * sinusoids(96, recipe.hidden_size))
