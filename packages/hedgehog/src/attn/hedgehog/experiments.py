"""What the ledger's claims are measured by: one experiment each, run once per seed, and the figures drawn from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import PreTrainedModel

from attn.core_kernels import LinearState, linear_attention, linear_attention_step
from attn.core_kernels.counting import floating_point_operations, peak_memory
from attn.hedgehog import plots
from attn.hedgehog.adapters import convert
from attn.hedgehog.attention import ConvertedAttention, LinearAttention, hedgehog_layers
from attn.hedgehog.data import DocsBytesData, PackedRecallData, ReviewsData
from attn.hedgehog.diagnostics import monotonicity, spikiness
from attn.hedgehog.feature_maps import query_key_maps
from attn.hedgehog.losses import attention_cross_entropy
from attn.hedgehog.metrics import ClassificationMetrics, RecallMetrics
from attn.hedgehog.paper_tier import (  # noqa: F401 - experiments, which the ledger names
    bert_glue,
    gpt2_wikitext103,
    gpt_from_scratch_wikitext103,
    llama2_samsum,
    vit_imagenet,
)
from attn.hedgehog.recall import RecallBlock, RecallModel
from attn.hedgehog.training import AttentionDistiller, HedgehogFinetune, quiet_trainer
from attn.shared_eval.claims import Context, Outcome, experiment
from attn.shared_eval.data import corpus_fingerprint, packed_recall
from attn.shared_eval.models import load_mini

RECALL_LR = 4e-3
DISTILL_LR = 1e-2


@dataclass(frozen=True)
class RecallTask:
    """Packed recall of all pairs of a sequence, with as many keys and values in the vocabulary.

    Attributes:
        pairs: of a sequence, which has twice as many tokens.
        batch_size: sequences in a batch.
        seed: which data set.
    """

    pairs: int
    batch_size: int
    seed: int

    @property
    def sizes(self) -> dict[str, int]:
        """Arguments of `packed_recall`."""
        return {"pairs": self.pairs, "queries": self.pairs, "keys": self.pairs, "values": self.pairs, "seed": self.seed}

    def data(self, steps: int = 1) -> PackedRecallData:
        """Batches for a number of training steps, and 1,024 unseen sequences."""
        return PackedRecallData(**self.sizes, train_examples=steps * self.batch_size, batch_size=self.batch_size)

    def model(self, feature_map: str = "softmax", map_options: dict[str, Any] | None = None) -> RecallModel:
        """An untrained model; with the same seed, its weights are the same for every map."""
        torch.manual_seed(self.seed)
        return RecallModel(keys=self.pairs, values=self.pairs, feature_map=feature_map, map_options=map_options)


def fixed_maps(tokens: int) -> dict[str, dict[str, Any]]:
    """Maps of which nothing is trained, and their options; cosFormer's horizon is the number of tokens."""
    return {"elu": {}, "performer": {}, "cosformer": {"max_positions": tokens}, "taylor": {}}


RECALL_STEPS = 300


@experiment
def recall_from_scratch(context: Context) -> Outcome:
    """Accuracy on unseen sequences of packed recall for softmax and every map, trained alike from the same weights.

    Softmax learns 24 pairs within the steps; with 20 pairs and more steps nearly every map does, and nothing is told
    apart.
    """
    task = RecallTask(pairs=24, batch_size=32, seed=context.seed)
    maps: dict[str, dict[str, Any]] = {"softmax": {}, "hedgehog": {}} | fixed_maps(2 * task.pairs)
    steps = _Steps(context, RECALL_STEPS * len(maps))
    figures: dict[str, float] = {}
    for name, options in maps.items():

        def accuracy(name: str = name, options: dict[str, Any] = options) -> float:
            return _train_recall(task.model(name, options), task, context, RECALL_STEPS, steps, name)

        figures[name] = context.kept(name, accuracy)
        steps.skip_to(RECALL_STEPS * len(figures), name)
    return Outcome(figures)


@recall_from_scratch.plot("recall.png")
def draw_recall(outcomes: Sequence[Outcome]) -> Figure:
    """Accuracy of every map, a dot for each seed."""
    names = ["softmax", "hedgehog", "taylor", "performer", "cosformer", "elu"]
    return plots.dots(outcomes, {name: name for name in names}, "accuracy on unseen sequences of associative recall")


TEACHER_STEPS = 300
RECALL_DISTILL_STEPS = 200


@experiment
def recall_conversion(context: Context) -> Outcome:
    """Maps that are fixed, untrained or distilled, against the softmax attention of a model trained on packed recall.

    Divergence, entropy and order agreement are means over the rows of the queries, on unseen sequences.
    """
    task = RecallTask(pairs=20, batch_size=64, seed=context.seed)
    # What is measured as: the map, its options, and whether it is distilled from "own" rows, "shuffled" ones or not.
    maps: dict[str, tuple[str, dict[str, Any], str | None]] = {
        name: (name, options, None) for name, options in fixed_maps(2 * task.pairs).items()
    } | {
        "hedgehog_undistilled": ("hedgehog", {}, None),
        "t2r_undistilled": ("t2r", {}, None),
        "hedgehog": ("hedgehog", {}, "own"),
        "t2r": ("t2r", {}, "own"),
        "t2r_without_bias": ("t2r", {"bias": False}, "own"),
        "shuffled": ("hedgehog", {}, "shuffled"),
    }
    steps = _Steps(
        context, TEACHER_STEPS + RECALL_DISTILL_STEPS * sum(taught is not None for *_, taught in maps.values())
    )
    figures: dict[str, float] = {}
    weights: dict[str, Tensor] = {}

    teacher = task.model()
    weights["untrained_softmax"], _ = _softmax_rows(teacher, task, context)
    figures["accuracy_softmax"] = _train_recall(teacher, task, context, TEACHER_STEPS, steps, "teacher")
    weights["softmax"], scores = _softmax_rows(teacher, task, context)
    visible = torch.ones_like(scores, dtype=torch.bool).tril(task.pairs)
    for name, (map_name, options, taught) in maps.items():
        model = task.model()
        model.load_state_dict(teacher.state_dict())
        torch.manual_seed(context.seed)
        model.convert(map_name, **options)
        if taught == "shuffled":
            shuffle_teacher(model)
        if taught is not None:
            distiller = AttentionDistiller(model, lr=DISTILL_LR)
            _fit(distiller, task.data(RECALL_DISTILL_STEPS), context, RECALL_DISTILL_STEPS, steps, f"distill {name}")
        weights[name] = _linear_rows(model, task, context)
        figures[f"kl_{name}"] = float(_divergence(weights["softmax"], weights[name]).mean())
        figures[f"accuracy_{name}"] = _recall_accuracy(model, task, context)
    for name, rows in weights.items():
        figures[f"entropy_{name}"] = float(spikiness(rows).mean())
        figures[f"order_{name}"] = float(monotonicity(scores, rows, mask=visible).mean())
    shown = ["softmax", "hedgehog", "hedgehog_undistilled", "t2r", "taylor", "elu", "performer", "cosformer"]
    return Outcome(figures, {f"weights_{name}": weights[name][0, 0].float().numpy() for name in shown})


@recall_conversion.plot("attention_weights.png")
def draw_attention_weights(outcomes: Sequence[Outcome]) -> Figure:
    """The weights of one head on one sequence, for softmax and the maps (the paper's figures of attention weights)."""
    return plots.weight_maps(outcomes[0])


@recall_conversion.plot("spikiness_and_order.png")
def draw_spikiness_and_order(outcomes: Sequence[Outcome]) -> Figure:
    """Entropy of rows against order agreement, for softmax and the maps."""
    names = ["softmax", "hedgehog", "hedgehog_undistilled", "t2r", "taylor", "elu", "performer", "cosformer"]
    return plots.spikiness_and_order(outcomes, names)


@recall_conversion.plot("mimicry.png")
def draw_mimicry(outcomes: Sequence[Outcome]) -> Figure:
    """Divergence from softmax and accuracy right after the swap."""
    distilled = ["hedgehog", "t2r", "t2r_without_bias", "shuffled"]
    names = [*distilled, "taylor", "hedgehog_undistilled", "t2r_undistilled", "elu"]
    return plots.two_panels(
        outcomes,
        ({f"kl_{name}": name for name in names}, "KL divergence from softmax rows, nats"),
        ({f"accuracy_{name}": name for name in ["softmax", *names]}, "accuracy right after the swap"),
    )


TEXT_DISTILL_STEPS = 100
TEXT_TUNE_STEPS = 60
TEXT_BATCH = 8
TEXT_CONTEXT = 128


@experiment
def text_conversion(context: Context) -> Outcome:
    """A pretrained byte-level language model, converted with several maps: loss after the swap and after finetuning.

    Loss is measured on unseen text of the packages that the model was trained on; divergence also on windows twice as
    long as those of the distillation, and on text of another package.
    """
    steps = _Steps(context, 3 * TEXT_DISTILL_STEPS + 3 * TEXT_TUNE_STEPS)
    same = partial(DocsBytesData, batch_size=TEXT_BATCH, test_split="test_in_domain", seed=context.seed)
    data = same(context=TEXT_CONTEXT)
    longer = same(context=2 * TEXT_CONTEXT)
    elsewhere = DocsBytesData(context=TEXT_CONTEXT, batch_size=TEXT_BATCH, test_split="test", seed=context.seed)
    figures = {"softmax": _test(HedgehogFinetune(_mini("hedgehog-bytes")), data, context)["test_loss"]}

    def converted(name: str) -> PreTrainedModel:
        torch.manual_seed(context.seed)
        return convert(_mini("hedgehog-bytes"), feature_map=name)

    def divergences(model: PreTrainedModel, suffix: str = "") -> None:
        for place, test_data in (("same", data), ("longer", longer), ("elsewhere", elsewhere)):
            figures[f"kl_{place}{suffix}"] = _test(AttentionDistiller(model), test_data, context)["test_kl"]

    def swap(name: str, model: PreTrainedModel) -> None:
        figures[f"swap_{name}"] = _test(HedgehogFinetune(model), data, context)["test_loss"]

    def tune(name: str, model: PreTrainedModel) -> None:
        _fit(HedgehogFinetune(model), data, context, TEXT_TUNE_STEPS, steps, f"finetune {name}")
        figures[f"tuned_{name}"] = _test(HedgehogFinetune(model), data, context)["test_loss"]

    undistilled = converted("hedgehog")
    swap("undistilled", undistilled)
    divergences(undistilled, "_undistilled")
    elu = converted("elu")
    swap("elu", elu)
    tune("elu", elu)
    for name in ("hedgehog", "t2r", "shuffled"):
        model = converted("hedgehog" if name == "shuffled" else name)
        if name == "shuffled":
            shuffle_teacher(model)
        _fit(AttentionDistiller(model, lr=DISTILL_LR), data, context, TEXT_DISTILL_STEPS, steps, f"distill {name}")
        swap(name, model)
        if name == "hedgehog":
            divergences(model)
        if name != "shuffled":
            tune(name, model)
    return Outcome(figures, data={"docs_corpus": corpus_fingerprint()})


@text_conversion.plot("text_conversion.png")
def draw_text_conversion(outcomes: Sequence[Outcome]) -> Figure:
    """Loss right after the swap and after finetuning."""
    swapped = {"swap_hedgehog": "hedgehog", "swap_t2r": "t2r", "swap_undistilled": "hedgehog_undistilled"}
    swapped |= {"swap_elu": "elu", "swap_shuffled": "shuffled"}
    tuned = {"softmax": "softmax", "tuned_hedgehog": "hedgehog", "tuned_t2r": "t2r", "tuned_elu": "elu"}
    return plots.two_panels(
        outcomes,
        ({"softmax": "softmax"} | swapped, "nats per byte right after the swap"),
        (tuned, "nats per byte after finetuning"),
    )


@text_conversion.plot("transfer.png")
def draw_transfer(outcomes: Sequence[Outcome]) -> Figure:
    """Divergence from softmax on the distillation's kind of text, on longer windows, and on text from elsewhere."""
    places = {"same": "same length and source", "longer": "twice the length", "elsewhere": "another source"}
    return plots.two_panels(
        outcomes,
        ({f"kl_{place}": label for place, label in places.items()}, "distilled: KL divergence, nats"),
        ({f"kl_{place}_undistilled": label for place, label in places.items()}, "undistilled: KL divergence, nats"),
    )


REVIEW_TOKENS = 51  # the longest review, the classification token and the separator
REVIEW_DISTILL_STEPS = 40
REVIEW_TUNE_STEPS = 40


@experiment
def classifier_conversion(context: Context) -> Outcome:
    """A finetuned bidirectional classifier (mini-bert) converted with several maps, each finetuned for the same steps.

    T2R and 1+ELU are not distilled, as in the protocol of T2R. The control, a Hedgehog map with random (Kaiming)
    weights, is neither distilled nor finetuned.
    """
    data = ReviewsData(seed=100 + context.seed, length=REVIEW_TOKENS)  # not the reviews that mini-bert was trained on
    steps = _Steps(context, REVIEW_DISTILL_STEPS + 3 * REVIEW_TUNE_STEPS)
    maps: dict[str, tuple[str, dict[str, Any]]] = {
        "hedgehog": ("hedgehog", {}),
        "t2r": ("t2r", {}),
        "elu": ("elu", {}),
        "random_map": ("hedgehog", {"init": "kaiming"}),
    }
    metrics = ClassificationMetrics
    softmax = HedgehogFinetune(_mini("mini-bert"), metrics())
    figures = {"softmax": _test(softmax, data, context)["test_accuracy"]}
    for name, (map_name, options) in maps.items():
        torch.manual_seed(context.seed)
        model = convert(_mini("mini-bert"), feature_map=map_name, **options)
        if name == "hedgehog":
            _fit(AttentionDistiller(model, lr=DISTILL_LR), data, context, REVIEW_DISTILL_STEPS, steps, "distill")
        figures[f"swap_{name}"] = _test(HedgehogFinetune(model, metrics()), data, context)["test_accuracy"]
        if name == "random_map":
            continue
        finetune = HedgehogFinetune(model, metrics(), lr=3e-4)
        _fit(finetune, data, context, REVIEW_TUNE_STEPS, steps, f"finetune {name}")
        figures[name] = _test(finetune, data, context)["test_accuracy"]
    return Outcome(figures)


@classifier_conversion.plot("classifier_conversion.png")
def draw_classifier_conversion(outcomes: Sequence[Outcome]) -> Figure:
    """Accuracy right after the swap and after finetuning."""
    names = ["hedgehog", "t2r", "elu", "random_map"]
    return plots.two_panels(
        outcomes,
        ({"softmax": "softmax"} | {f"swap_{name}": name for name in names}, "accuracy right after the swap"),
        ({name: name for name in ["softmax", "hedgehog", "t2r", "elu"]}, "accuracy after finetuning"),
    )


COST_TOKENS = (512, 1024, 2048, 4096)


@experiment
def cost(context: Context) -> Outcome:
    """How floating-point operations and peak memory of one forward grow with tokens; both are counted, not timed.

    The count is the profiler's, over the operations that really run: matrix products, sums and products.
    """
    heads, head_dim = 2, 64
    linear = LinearAttention(*query_key_maps("hedgehog", heads, head_dim)).to(context.device)

    def hedgehog(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return linear(query, key, value, causal=True)[0]

    def softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        hidden = torch.ones(query.shape[-2], query.shape[-2], dtype=torch.bool, device=query.device).triu(1)
        scores = (query @ key.mT * head_dim**-0.5).masked_fill(hidden, -torch.inf)
        return scores.softmax(dim=-1) @ value

    figures: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {"tokens": np.array(COST_TOKENS)}
    for done, (name, function) in enumerate((("hedgehog", hedgehog), ("softmax", softmax))):
        counts: dict[str, list[float]] = {"flops": [], "bytes": []}
        for number, tokens in enumerate(COST_TOKENS):
            inputs = torch.randn(3, 1, heads, tokens, head_dim, device=context.device)
            with torch.no_grad():
                counts["bytes"].append(peak_memory(lambda: function(*inputs)))  # noqa: B023 - called at once
                counts["flops"].append(floating_point_operations(lambda: function(*inputs)))  # noqa: B023
            context.progress(done * len(COST_TOKENS) + number + 1, 2 * len(COST_TOKENS), name)
        for quantity, values in counts.items():
            figures[f"{quantity}_slope_{name}"] = float(np.polyfit(np.log(COST_TOKENS), np.log(values), 1)[0])
            arrays[f"{quantity}_{name}"] = np.array(values)
    return Outcome(figures, arrays)


@cost.plot("cost.png")
def draw_cost(outcomes: Sequence[Outcome]) -> Figure:
    """Operations and peak memory over tokens, both axes logarithmic."""
    return plots.cost(outcomes[0])


@experiment
def forms_agree(context: Context) -> Outcome:
    """Largest difference of each form of linear attention from the quadratic one, relative to the largest output.

    In float32, with Hedgehog's features, 300 tokens and their gradients; the control leaves the denominator out.
    """
    query_map, key_map = query_key_maps("hedgehog", 2, 32)
    query, key = (torch.randn(2, 2, 300, 32, device=context.device) for _ in range(2))
    value = torch.randn(2, 2, 300, 24, device=context.device)
    query_map, key_map = query_map.to(context.device), key_map.to(context.device)
    features = [x.detach().requires_grad_() for x in (query_map(query), key_map(key), value)]

    def outputs(attend: Callable[..., Any]) -> Tensor:
        out = attend(*features)
        return torch.cat(
            [out.detach().flatten(), *(g.flatten() for g in torch.autograd.grad(out.square().sum(), features))]
        )

    def recurrent(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        state: LinearState | None = None
        rows = []
        for q, k, v in zip(*(x.split(1, dim=-2) for x in (query, key, value)), strict=True):
            row, state = linear_attention_step(q, k, v, state)
            rows.append(row)
        return torch.cat(rows, dim=-2)

    quadratic = outputs(partial(linear_attention, impl="reference"))
    figures = {
        "chunked": _relative(outputs(partial(linear_attention, impl="torch", chunk_size=64)), quadratic),
        "recurrent": _relative(outputs(recurrent), quadratic),
        "without_denominator": _relative(outputs(partial(linear_attention, normalize=False)), quadratic),
        "bidirectional": _relative(
            outputs(partial(linear_attention, causal=False, impl="torch")),
            outputs(partial(linear_attention, causal=False, impl="reference")),
        ),
    }
    return Outcome(figures)


def shuffle_teacher(model: nn.Module) -> None:
    """Let every converted layer learn from the softmax weights of its neighbour in the batch: the negative control."""
    for layer in hedgehog_layers(model):
        layer.record_distillation = partial(_record_neighbour, layer)  # type: ignore[method-assign]


def _record_neighbour(
    layer: ConvertedAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001 - read by the objective "output_mse" only
    teacher_output: Tensor,  # noqa: ARG001
    **options: Any,
) -> None:
    """`ConvertedAttention.record_distillation` with the teacher's queries and keys of another row of the batch."""
    positions = options.pop("positions", None)
    query, key = query.detach(), key.detach()
    features = layer.query_map(query, positions), layer.key_map(key, positions)
    rows = attention_cross_entropy(query.roll(1, dims=0), key.roll(1, dims=0), *features, **options)
    layer.distillation_loss, layer.teacher_entropy = rows


def _mini(name: str) -> PreTrainedModel:
    return cast(PreTrainedModel, load_mini(name).model)


def _train_recall(
    model: RecallModel, task: RecallTask, context: Context, number: int, steps: "_Steps", text: str
) -> float:
    """Train with the task's loss; the accuracy on unseen sequences."""
    _fit(HedgehogFinetune(model, lr=RECALL_LR, schedule="cosine"), task.data(number), context, number, steps, text)
    return _recall_accuracy(model, task, context)


def _recall_accuracy(model: RecallModel, task: RecallTask, context: Context) -> float:
    return _test(HedgehogFinetune(model, RecallMetrics(task.pairs)), task.data(), context)["test_accuracy"]


def _recall_heads(model: RecallModel, task: RecallTask, context: Context) -> tuple[Tensor, Tensor]:
    """Queries and keys of the only layer on unseen sequences, ``[32, heads, tokens, head_dim]``."""
    batch = packed_recall(32, split="test", **task.sizes)
    block = cast(RecallBlock, model.to(context.device).blocks[0])
    with torch.no_grad():
        x = model.key_embedding(batch.key_ids.to(context.device))
        x = x + model.value_embedding(batch.value_ids.to(context.device))
        return block.attention.queries_and_keys(block.attention_norm(x))


def _softmax_rows(model: RecallModel, task: RecallTask, context: Context) -> tuple[Tensor, Tensor]:
    """Softmax weights and scores of the rows of the queries, ``[32, heads, rows, keys]``."""
    query, key = _recall_heads(model, task, context)
    scores = query[..., task.pairs :, :] @ key.mT * query.shape[-1] ** -0.5
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(task.pairs + 1)
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1), scores


def _linear_rows(model: RecallModel, task: RecallTask, context: Context) -> Tensor:
    """Normalized linear weights of the rows of the queries, ``[32, heads, rows, keys]``."""
    (layer,) = hedgehog_layers(model)
    query, key = _recall_heads(model, task, context)
    with torch.no_grad():
        products = (layer.query_map(query)[..., task.pairs :, :] @ layer.key_map(key).mT).tril(task.pairs)
    return products / products.sum(dim=-1, keepdim=True)


def _divergence(softmax: Tensor, linear: Tensor) -> Tensor:
    """KL divergence of rows of linear weights from rows of softmax weights, in nats."""
    return (torch.special.xlogy(softmax, softmax) - torch.special.xlogy(softmax, linear.clamp(min=1e-12))).sum(dim=-1)


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


class _Steps(Callback):
    """Counts the optimizer steps of all trainings of an experiment."""

    def __init__(self, context: Context, total: int) -> None:
        self.context, self.total, self.done, self.text = context, total, 0, ""

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.skip_to(self.done + 1, self.text)

    def skip_to(self, done: int, text: str) -> None:
        self.done = done
        self.context.progress(done, self.total, text)


def _fit(
    module: LightningModule, data: LightningDataModule, context: Context, number: int, steps: _Steps, text: str
) -> None:
    """Train for a number of steps without validation."""
    steps.text = text
    trainer = quiet_trainer(
        context.device, max_steps=number, limit_val_batches=0, callbacks=[steps], gradient_clip_val=1.0
    )
    trainer.fit(module, data)


def _test(module: LightningModule, data: LightningDataModule, context: Context) -> dict[str, float]:
    """What `test_step` logs, on at most 12 batches."""
    trainer = quiet_trainer(context.device, limit_test_batches=12)
    (figures,) = trainer.test(module, data, verbose=False)
    return dict(figures)
