"""mini-lm's rows, losses and gates against loops and planted models."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from attn.shared_eval.data import text_tokenizer
from attn.shared_eval.data.tasks import docs_tokens, kv_recall, passkey
from attn.shared_eval.models import find_recipe
from attn.shared_eval.models.recipe import seeded_build
from attn.shared_eval.models.recipes.mini_lm import PARTS, SHALLOW_SHARES, SHARES
from attn.shared_eval.models.recipes.mini_lm_gates import SINK, accuracy, far_pages, sink_share, text_loss
from attn.shared_eval.models.training import RecipeModule


@pytest.fixture(scope="module")
def recipe():
    return find_recipe("mini-lm")


@pytest.fixture(scope="module")
def narrow(recipe):
    return recipe.narrow()


@pytest.mark.parametrize("context", [64, 128, 256, 512, 1024])
def test_rows_of_every_kind_fit_the_context(recipe, context):
    rows = [recipe._row(row, context) for row in range(600)]
    shares = Counter(kind for kind, _ in rows)
    for kind, share in (SHALLOW_SHARES if context == 64 else SHARES).items():
        assert abs(shares[kind] / 600 - share) < 4 * math.sqrt(share * (1 - share) / 600), kind
    assert max(len(prompt.ids) for _, prompt in rows) == context
    assert all(prompt.ids[0] == recipe.tokenizer.bos_token_id for _, prompt in rows)
    assert all(len(prompt.answers) > 0 for kind, prompt in rows if kind != "text")


def test_prose_is_a_stretch_of_the_training_split(recipe):
    kind, prompt = next(row for row in (recipe._row(i, 128) for i in range(50)) if row[0] == "text")
    assert kind == "text"
    windows = docs_tokens("train").unfold(0, 127, 1)
    assert (windows == prompt.ids[1:].int()).all(-1).any()
    assert torch.equal(prompt.labels, prompt.ids)


def test_contexts_follow_the_curriculum(recipe):
    samples = recipe.steps * recipe.batch_size
    start = 0
    for context, share in recipe.curriculum:
        assert recipe.context(start) == recipe.context(start + round(share * samples) - 1) == context
        start += round(share * samples)
    assert start == samples
    assert recipe.context(samples) == 1024


def test_a_sample_is_1024_tokens_whatever_its_batch(narrow):
    longer = replace(narrow, steps=100)
    for first, context in ((0, 64), (99, 1024)):
        together = longer.batch(range(first, first + 3))
        apart = [longer.batch([index]) for index in range(first, first + 3)]
        assert together["input_ids"].shape == (3 * 1024 // context, context)
        for name, column in together.items():
            assert torch.equal(column, torch.cat([batch[name] for batch in apart]))


def test_the_loss_is_the_sum_of_the_means_of_prose_answers_and_repeated_words(narrow):
    module = RecipeModule(narrow).double()
    batch = narrow.batch(range(2))
    assert set(batch["part"].tolist()) == set(range(len(PARTS)))
    with torch.no_grad():
        total = narrow.loss(module.model, batch).item()
        module.model.set_attn_implementation("sdpa")
        logs = module.model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
    sums = {}
    for row, labels in enumerate(batch["labels"].tolist()):
        for position, label in enumerate(labels[1:]):
            if label != -100:
                sums.setdefault(batch["part"][row].item(), []).append(-logs[row, position, label].item())
    assert total == pytest.approx(sum(sum(losses) / len(losses) for losses in sums.values()), rel=1e-5)


def test_a_batch_of_prose_alone_has_a_finite_loss_and_gradient(narrow):
    batch = narrow.batch([0])
    batch = {name: column[batch["part"] == PARTS.index("text")] for name, column in batch.items()}
    model = seeded_build(narrow)
    losses = narrow.losses(model, batch)
    assert losses["answers"] == losses["copy"] == 0 < losses["text"]
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_lowest_two_layers_learn_the_shortest_rows_alone_and_the_others_then_join_as_the_identity(narrow):
    model = seeded_build(replace(narrow, layers=4))
    recipe = replace(narrow, layers=4, steps=100)
    with torch.no_grad():
        hidden = model.model(input_ids=recipe.batch([99])["input_ids"], output_hidden_states=True).hidden_states
    assert torch.equal(hidden[2], hidden[3])  # the last one is normalised
    recipe.loss(model, recipe.batch([0])).backward()
    learning = [any(p.grad is not None for p in layer.parameters()) for layer in model.model.layers]
    assert learning == [True, True, False, False]
    assert model.config.num_hidden_layers == 4
    recipe.loss(model, recipe.batch([99])).backward()
    assert all(layer.mlp.down_proj.weight.grad.any() for layer in model.model.layers)


def test_repeated_words_are_those_a_period_before(recipe):
    prompt = next(prompt for kind, prompt in (recipe._row(i, 64) for i in range(50)) if kind == "copy")
    assert len(prompt.ids) == 64
    for answer in prompt.answers:
        ((start, stop),) = answer.evidence
        assert torch.equal(prompt.ids[start:stop], prompt.ids[slice(*answer.span)])
        assert start < answer.span[0]


class Planted(torch.nn.Module):
    """Answers by looking the last token up in the prompt, if ``knows``; its maps are what ``plant`` makes of each."""

    def __init__(self, *, knows=True, plant=lambda maps: None, layers=4, heads=2):
        super().__init__()
        self.knows, self.plant, self.layers, self.heads = knows, plant, layers, heads
        self.config = SimpleNamespace(_attn_implementation="sdpa")

    def set_attn_implementation(self, name):
        self.config._attn_implementation = name

    def forward(self, input_ids, output_attentions=False, logits_to_keep=0):
        rows, tokens = input_ids.shape
        logits = torch.zeros(rows, 1, 2048)
        for row, ids in enumerate(input_ids.tolist()):
            logits[row, 0, ids[ids.index(ids[-1]) + 1] if self.knows else ids[1]] = 1
        visible = torch.ones(tokens, tokens).tril()
        maps = torch.zeros(rows, self.layers, self.heads, tokens, tokens) + visible
        self.plant(maps)
        maps = maps * visible
        maps = maps / maps.sum(-1, keepdim=True)
        assert not output_attentions or self.config._attn_implementation == "eager"
        return SimpleNamespace(logits=logits, attentions=maps.unbind(1))


def test_accuracy_counts_right_first_answers():
    for task in (partial(kv_recall, pairs=6, queries=2), partial(passkey, length=40)):
        assert accuracy(Planted(), 20, task=task) == 1
    task = partial(kv_recall, pairs=6)
    first = [prompt.ids[1] == prompt.ids[prompt.answers[0].span[0]] for prompt in map(task, range(20))]
    assert accuracy(Planted(knows=False), 20, task=task) == sum(first) / 20 == 0


def test_sinks_are_counted_by_head_from_the_third_layer_on():
    def plant(maps):
        maps[:, 0, :, :, 0] = 1e3  # first two layers do not count
        maps[:, 2, 0, :, 0] = 1e3
        maps[:, 3, 1, :, 40] = 1e3
        maps[:, 3, 0, :, 250] = 1e3  # in the last quarter

    assert sink_share(Planted(), 4, later=False) == sink_share(Planted(), 4, later=True) == 0
    assert sink_share(Planted(plant=plant), 4, later=False) == 1 / 4
    assert sink_share(Planted(plant=plant), 4, later=True) == 1 / 4


@pytest.mark.parametrize(("margin", "share"), [(1.01, 1.0), (0.99, 0.0)])
def test_a_sink_receives_more_than_a_tenth_on_average(margin, share):
    def plant(maps):  # column 7 gets the same from each row that sees it and another token
        maps[:] = 0.0
        maps[..., 0] = 1 - margin * SINK
        maps[..., 7] = margin * SINK

    found = sink_share(Planted(plant=plant), 2, later=True)
    assert found == share


def test_far_pages_compare_the_best_quarter_with_a_random_one():
    assert far_pages(Planted(), 3, seed=0) == pytest.approx(1)
    boost = 5.0

    def plant(maps):
        maps[:, :2, :, :, 24:30] = 1 + boost  # the page of the fourth record, in two of four layers
        maps[:, 2, :, :, :6] = 1e3  # not far: the first page and the recent ones
        maps[:, 2, :, :, 186:] = 1e3

    # 30 far pages, of which the best 7 hold 7 + boost of 30 + boost
    expected = (7 + boost) / 7 * 30 / (30 + boost)
    assert far_pages(Planted(plant=plant), 3, seed=0) == pytest.approx(expected, rel=1e-5)

    def plant_one(maps):
        maps[:, 0, :, :, 24:30] = 1 + boost

    assert far_pages(Planted(plant=plant_one), 3, seed=0) == pytest.approx(1)  # one layer of four is not half of them


def test_the_maps_leave_the_model_as_it_was(narrow):
    model = seeded_build(replace(narrow, layers=4)).eval()
    before = model.config._attn_implementation
    with torch.no_grad():
        assert 1 <= far_pages(model, 2, seed=0) < 2
    assert model.config._attn_implementation == before


def test_text_loss_is_relative_to_the_unigram_entropy():
    tokens = docs_tokens("test_in_domain").tolist()
    counts = Counter(tokens)
    entropy = -sum(n / len(tokens) * math.log(n / len(tokens)) for n in counts.values())

    def uniform(input_ids):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 2048))

    assert text_loss(uniform, 3) == pytest.approx(math.log(2048) / entropy)

    def seer(input_ids):
        return SimpleNamespace(logits=50.0 * torch.nn.functional.one_hot(input_ids.roll(-1, 1), 2048))

    assert text_loss(seer, 3) == pytest.approx(0, abs=1e-6)


def test_the_model_and_its_tokenizer_agree(recipe):
    config = seeded_build(recipe).config
    tokenizer = text_tokenizer()
    assert config.vocab_size == len(tokenizer)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
