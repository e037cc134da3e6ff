"""The mini tier's experiments: what they measure by against brute force, the ledger, the control, and the plots."""

import io
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm

from attn.hedgehog import experiments, hedgehog_layers, plots
from attn.hedgehog.experiments import RecallTask, _divergence, _linear_rows, _softmax_rows, shuffle_teacher
from attn.shared_eval.claims import Context, Outcome
from attn.shared_eval.claims.experiment import Experiment
from attn.shared_eval.claims.ledger import load
from attn.shared_eval.data import packed_recall

LEDGER = Path(__file__).parents[1] / "claims.toml"
EXPERIMENTS = {item.name: item for item in vars(experiments).values() if isinstance(item, Experiment)}
TASK = RecallTask(pairs=3, batch_size=4, seed=0)


@pytest.fixture
def context(tmp_path):
    return Context("mini", 0, torch.device("cpu"), tmp_path)


def claimed(name):
    """The figures that the ledger reads of an experiment."""
    tiers = [tier for claim in load(LEDGER, need_pins=False).claim for tier in (claim.mini, claim.paper) if tier]
    return {figure for tier in tiers if tier.experiment == name for figure in tier.figures}


def drawn(experiment, outcomes):
    """The plots of an experiment, drawn and rendered."""
    figures = {name: draw(outcomes) for name, draw in experiment.plots.items()}
    for figure in figures.values():
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=20)
        assert image.getvalue().startswith(b"\x89PNG")
    return figures


def sharp_model(feature_map="softmax"):
    """A model whose rows are far from uniform and whose maps, if it has any, differ between layers and heads."""
    model = TASK.model(feature_map)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        attention = model.blocks[0].attention
        attention.query.weight.mul_(6)
        attention.key.weight.mul_(3)
        if feature_map != "softmax":
            for parameter in attention.mixer.parameters():
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def heads(model, batch):
    """Queries and keys of the model's layer, float64."""
    block = model.blocks[0]
    with torch.no_grad():
        x = model.key_embedding.weight[batch.key_ids] + model.value_embedding.weight[batch.value_ids]
        query, key = block.attention.queries_and_keys(
            layer_norm(x, x.shape[-1:], block.attention_norm.weight, block.attention_norm.bias)
        )
    return query.double(), key.double()


def softmax_row(query, key, i):
    """Weights of row i as a list, from the equation."""
    scores = [float(query[i] @ key[j]) / math.sqrt(query.shape[-1]) for j in range(i + 1)]
    largest = max(scores)
    exponentials = [math.exp(score - largest) for score in scores]
    return [x / sum(exponentials) for x in exponentials]


def linear_row(query_features, key_features, i):
    products = [float(query_features[i] @ key_features[j]) for j in range(i + 1)]
    return [x / sum(products) for x in products]


def test_the_ledger_names_experiments_that_exist_and_all_of_them():
    raw = tomllib.loads(LEDGER.read_text(encoding="utf-8"))
    named = {
        claim[tier]["experiment"]
        for claim in raw["claim"]
        for tier in ("mini", "paper")
        if "experiment" in claim.get(tier, {})
    }
    assert named == set(EXPERIMENTS)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_shuffled_teacher_is_that_of_the_row_before(shuffled):
    model = sharp_model("hedgehog")
    if shuffled:
        shuffle_teacher(model)
    (layer,) = hedgehog_layers(model)
    layer.mode = "distill"
    batch = packed_recall(3, split="test", **TASK.sizes)
    model(key_ids=batch.key_ids, value_ids=batch.value_ids)
    query, key = heads(model, batch)
    with torch.no_grad():
        query_features, key_features = (
            f(x.float()).double() for f, x in ((layer.query_map, query), (layer.key_map, key))
        )
    losses, entropies = [], []
    for row in range(3):
        teacher = (row - 1) % 3 if shuffled else row
        for head in range(query.shape[1]):
            for i in range(query.shape[2]):
                weights = softmax_row(query[teacher, head], key[teacher, head], i)
                student = linear_row(query_features[row, head], key_features[row, head], i)
                losses.append(-sum(a * math.log(s) for a, s in zip(weights, student, strict=True)))
                entropies.append(-sum(a * math.log(a) for a in weights if a > 0))
    assert float(layer.distillation_loss.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert float(layer.teacher_entropy) == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)


def test_a_shuffled_teacher_gives_another_loss():
    losses = []
    for shuffled in (False, True):
        model = sharp_model("hedgehog")
        if shuffled:
            shuffle_teacher(model)
        (layer,) = hedgehog_layers(model)
        layer.mode = "distill"
        batch = packed_recall(8, split="test", **TASK.sizes)
        model(key_ids=batch.key_ids, value_ids=batch.value_ids)
        losses.append(float(layer.distillation_loss.detach()))
    assert losses[1] > losses[0] + 0.05


def test_rows_are_those_of_the_equations(context):
    batch = packed_recall(32, split="test", **TASK.sizes)
    softmax, linear = sharp_model(), sharp_model("hedgehog")
    weights, scores = _softmax_rows(softmax, TASK, context)
    products = _linear_rows(linear, TASK, context)
    query, key = heads(softmax, batch)
    (layer,) = hedgehog_layers(linear)
    with torch.no_grad():
        features = layer.query_map(query.float()).double(), layer.key_map(key.float()).double()
    assert weights.shape == products.shape == (32, 2, 3, 6)  # the rows of the queries, which come after the pairs
    for row in (0, 31):
        for head in range(2):
            for i in range(3):
                hidden = [0.0] * (2 - i)
                expected = softmax_row(query[row, head], key[row, head], i + 3) + hidden
                assert weights[row, head, i].tolist() == pytest.approx(expected, abs=1e-5)
                expected = linear_row(features[0][row, head], features[1][row, head], i + 3) + hidden
                assert products[row, head, i].tolist() == pytest.approx(expected, abs=1e-5)
                dots = [float(query[row, head, i + 3] @ key[row, head, j]) / 4 for j in range(6)]
                assert scores[row, head, i].tolist() == pytest.approx(dots, abs=1e-4)


def test_divergence_is_that_of_the_equation():
    generator = torch.Generator().manual_seed(0)
    softmax, linear = (torch.rand(2, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    softmax[..., 3:] = 0  # hidden keys
    linear[0, 0, 3] = linear[0, 1, 0] = 0
    softmax, linear = (x / x.sum(dim=-1, keepdim=True) for x in (softmax, linear))
    for row, divergence in zip(range(2), _divergence(softmax, linear), strict=True):
        for i in range(3):
            pairs = zip(softmax[row, i].tolist(), linear[row, i].tolist(), strict=True)
            expected = sum(a * math.log(a / max(s, 1e-12)) for a, s in pairs if a > 0)
            assert float(divergence[i]) == pytest.approx(expected, rel=1e-12)
    assert float(_divergence(softmax, softmax).abs().max()) == pytest.approx(0, abs=1e-12)


def test_forms_agree_and_the_control_does_not(context):
    figures = experiments.forms_agree(context).figures
    assert claimed("forms_agree") <= set(figures)
    assert 0 < max(figures[name] for name in ("chunked", "recurrent", "bidirectional")) < 1e-5
    assert figures["without_denominator"] > 1e-2


def test_cost_is_linear_and_that_of_softmax_quadratic(context, monkeypatch):
    monkeypatch.setattr(experiments, "COST_TOKENS", (256, 512, 1024))
    outcome = experiments.cost(context)
    assert claimed("cost") <= set(outcome.figures)
    for quantity in ("flops", "bytes"):
        assert 0.8 <= outcome.figures[f"{quantity}_slope_hedgehog"] <= 1.25
        assert 1.6 <= outcome.figures[f"{quantity}_slope_softmax"] <= 2.1
    (figure,) = drawn(experiments.cost, [outcome]).values()
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]


@pytest.mark.parametrize("name", ["recall_conversion", "recall_from_scratch"])
def test_an_experiment_gives_what_ledger_and_plots_read(name, context, monkeypatch):
    for constant in ("RECALL_STEPS", "TEACHER_STEPS", "RECALL_DISTILL_STEPS"):
        monkeypatch.setattr(experiments, constant, 1)
    outcome = EXPERIMENTS[name](context)
    assert claimed(name) <= set(outcome.figures)
    assert all(math.isfinite(value) for value in outcome.figures.values())
    figures = drawn(EXPERIMENTS[name], [outcome, outcome])
    assert set(figures) == set(EXPERIMENTS[name].plots) != set()
    if name == "recall_conversion":
        assert sum(len(axes.images) for axes in figures["attention_weights.png"].axes) == 8


class Everything(dict):
    """A figure for every name."""

    def __missing__(self, name):
        self[name] = 0.25 * len(self)
        return self[name]


@pytest.mark.parametrize("name", ["text_conversion", "classifier_conversion"])
def test_plots_are_drawn_from_figures(name):
    outcome = Outcome({})
    object.__setattr__(outcome, "figures", Everything())
    for figure in drawn(EXPERIMENTS[name], [outcome]).values():
        assert all(len(axes.patches) >= 3 and axes.get_title() for axes in figure.axes)
    assert outcome.figures


def test_bars_are_means_and_dots_are_seeds():
    outcomes = [Outcome({"softmax": 1.0, "t2r": 4.0}), Outcome({"softmax": 2.0, "t2r": 8.0})]
    (axes,) = plots.dots(outcomes, {"softmax": "softmax", "t2r": "t2r"}, "title").axes
    assert [bar.get_width() for bar in axes.patches] == [1.5, 6.0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1.0, 4.0], [2.0, 8.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["softmax", "T2R"]


def test_weight_maps_show_the_weights():
    weights = np.eye(3, 6)
    (axes, *_) = plots.weight_maps(Outcome({}, {"weights_softmax": weights, "weights_elu": weights / 2})).axes
    assert axes.get_title() == "softmax"
    assert np.array_equal(axes.images[0].get_array(), weights)
