"""Measures of the patterns on circuits whose answer is known, and circuits of real layers of transformers."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, ViTConfig, ViTModel

from attn.icl_regression import Circuits, layer_circuits, multi_task_report, pattern_report, scales
from attn.icl_regression.experiments import patterned_model


def exact(omega, mu):
    model = patterned_model(torch.tensor(omega).double(), torch.tensor(mu).double(), d=4)
    return model.circuits_of(0)


def test_exact_patterns_are_perfect():
    report = pattern_report(exact([0.5, -0.25, 0.01], [2.0, -2.0, 0.05]))
    assert report.omega.tolist() == pytest.approx([0.5, -0.25, 0.01])
    assert report.mu.tolist() == pytest.approx([2.0, -2.0, 0.05])
    assert report.head_types == ["positive", "negative", "dummy"]
    assert (report.diagonal, report.last_entry, report.sign_match) == pytest.approx((1, 1, 1))
    assert report.homogeneity == pytest.approx(0, abs=1e-12)
    assert report.zero_sum == pytest.approx(0.05 / 2)
    assert report.equal_scale == pytest.approx(2)
    assert report.step == pytest.approx(1 + 0.5 + 0.0005)
    assert report.opposite
    assert report.complete


def test_measures_are_their_definitions():
    generator = torch.Generator().manual_seed(0)
    circuits = Circuits(*(torch.randn(2, n, 5, generator=generator, dtype=torch.float64) for n in (5, 1)))
    report = pattern_report(circuits)
    diagonals, homogeneities, lasts, matches = [], [], [], []
    for head in range(2):
        matrix, values = circuits.query_key[head].tolist(), circuits.output_value[head, 0].tolist()
        entries = [matrix[i][i] for i in range(4)]
        mean = sum(entries) / 4
        total = sum(matrix[i][j] ** 2 for i in range(5) for j in range(4))  # all rows; not the column of the label
        diagonals.append(sum(x**2 for x in entries) / total)
        homogeneities.append(math.sqrt(sum((x - mean) ** 2 for x in entries) / 4) / abs(mean))
        lasts.append(values[4] ** 2 / sum(x**2 for x in values))
        matches.append((mean > 0) == (values[4] > 0))
    _, mu = scales(circuits)
    assert report.active.all()
    assert report.diagonal == pytest.approx(sum(diagonals) / 2)
    assert report.homogeneity == pytest.approx(sum(homogeneities) / 2)
    assert report.last_entry == pytest.approx(sum(lasts) / 2)
    assert report.sign_match == pytest.approx(sum(matches) / 2)
    assert report.zero_sum == pytest.approx(abs(float(mu.sum())) / max(map(abs, mu.tolist())))
    assert not report.complete


@pytest.mark.parametrize(("mu", "opposite"), [([1.0, 1.0], False), ([-1.0, -2.0], False), ([1.0, -1.0], True)])
def test_opposite_heads_have_both_signs(mu, opposite):
    assert pattern_report(exact([0.3, 0.3], mu)).opposite is opposite


def test_signs_that_differ_are_counted():
    assert pattern_report(exact([0.3, -0.3, 0.3, 0.3], [1.0, 1.0, -1.0, 1.0])).sign_match == pytest.approx(0.5)


def projectors(indicators, mixing):
    """Heads t+ and t- of each task, on its coordinates; ``mixing`` lets each speak for the other task as well."""
    _, d = indicators.shape
    query_key, output_value = torch.zeros(4, d + 2, d + 2), torch.zeros(4, 2, d + 2)
    for head in range(4):
        task, sign = head // 2, 1 - 2 * (head % 2)
        query_key[head, :d, :d] = torch.diag(0.2 * sign * indicators[task])
        output_value[head, task, d + task] = 2.0 * sign
        output_value[head, 1 - task, d + 1 - task] = mixing * 2.0 * sign
    return Circuits(query_key, output_value)


INDICATORS = torch.tensor([[1.0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])


def test_projectors_serve_one_task_each():
    report = multi_task_report(projectors(INDICATORS, 0.0), INDICATORS)
    assert (report.participation, report.projector) == pytest.approx((1, 1))
    assert (report.cross, report.zero_sum) == pytest.approx((0, 0))
    assert report.active.all()
    assert report.mu.tolist() == [[2, 0], [-2, 0], [0, 2], [0, -2]]


def test_participation_and_cross_are_their_definitions():
    circuits = projectors(INDICATORS, 1.0)
    report = multi_task_report(circuits, INDICATORS)
    share = 0.5  # half the coordinates of the other task lie in the head's support
    assert report.participation == pytest.approx((1 + share) ** 2 / (1 + share**2))
    circuits.output_value[0, 0, 7] = 0.5  # the label of the second task in the first output
    circuits.output_value[0, 0, 6] = 4.0
    report = multi_task_report(circuits, INDICATORS)
    assert report.cross == pytest.approx(0.5 / 4)
    assert report.zero_sum == pytest.approx((4 - 2) / 4)


def test_reports_refuse_other_circuits():
    with pytest.raises(ValueError, match="circuits must be of a model with one label, got 2"):
        pattern_report(projectors(INDICATORS, 0.0))
    with pytest.raises(
        ValueError, match=r"circuits must be of a model with 2 labels and 6 covariates, got .*\(2, 1, 5\)"
    ):
        multi_task_report(exact([0.1, 0.1], [1.0, 1.0]), INDICATORS)


LLAMA = {"vocab_size": 8, "hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4}


def test_circuits_of_a_llama_with_grouped_queries():
    attention = LlamaModel(LlamaConfig(**LLAMA, num_key_value_heads=2)).layers[0].self_attn
    query_key, output_value = layer_circuits(attention, [3, 1])
    for row, head in enumerate((3, 1)):
        q, k, v, o = (getattr(attention, f"{name}_proj").weight.detach() for name in "qkvo")
        own, shared = slice(3 * head, 3 * head + 3), slice(3 * (head // 2), 3 * (head // 2) + 3)
        torch.testing.assert_close(query_key[row], k[shared].T @ q[own] / 3**0.5)
        torch.testing.assert_close(output_value[row], o[:, own] @ v[shared])
    assert layer_circuits(attention).query_key.shape == (4, 12, 12)


def test_circuits_of_a_gpt2_give_its_attention():
    attention = GPT2Model(GPT2Config(vocab_size=8, n_embd=12, n_layer=1, n_head=3)).eval().h[0].attn
    tokens = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention.c_attn.bias.zero_()
        attention.c_proj.bias.zero_()
        expected = attention(tokens[None])[0][0, -1]  # the last token sees all
    circuits = layer_circuits(attention)
    outputs = [
        value @ ((tokens @ query_key @ tokens[-1]).softmax(0) @ tokens)
        for query_key, value in zip(*circuits, strict=True)
    ]
    torch.testing.assert_close(sum(outputs), expected)


def test_other_layers_and_heads_are_refused():
    vit = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=4, patch_size=2))
    with pytest.raises(NotImplementedError, match=r"attention must have q_proj, .*, got ViTEmbeddings"):
        layer_circuits(vit.embeddings)
    attention = LlamaModel(LlamaConfig(**LLAMA)).layers[0].self_attn
    with pytest.raises(ValueError, match=r"heads must lie in 0 .. 3, got \[4\]"):
        layer_circuits(attention, [4])
