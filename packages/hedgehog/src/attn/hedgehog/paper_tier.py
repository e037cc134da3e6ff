"""The paper tier: the paper's experiments with its checkpoints and data, read from local folders below the data root.

Checkpoints are snapshots of the hub (config, safetensors, tokenizer or image processor); data sets are in the hub's
formats or the original ones (see `attn.shared_eval.data.load_table` and `ImageData`)::

    gpt2/                           openai-community/gpt2
    wikitext-103-raw-v1/            Salesforce/wikitext, wikitext-103-raw-v1
    bert-base-uncased/              google-bert/bert-base-uncased
    bert-base-uncased-<task>/       optional: BERT finetuned on a task; made by the experiment if it is not there
    glue/<task>/                    nyu-mll/glue, a folder for each task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte
    vit-base-patch16-224/           google/vit-base-patch16-224
    imagenet-1k/                    ILSVRC/imagenet-1k, or train/<class>/ and val/<class>/ with images
    Llama-2-7b-hf/                  meta-llama/Llama-2-7b-hf
    samsum/                         Samsung/samsum

A training that is killed goes on from its last checkpoint in the context's work folder, and what is finished is not
done again: trained weights are kept as ``<name>.safetensors``, numbers by `Context.kept`.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from attn.hedgehog.adapters import convert
from attn.hedgehog.data import GLUE_COLUMNS, GlueData, ImageData, LocalTextData, SamsumData, TaskData
from attn.hedgehog.metrics import (
    ClassificationMetrics,
    LanguageModelMetrics,
    RegressionMetrics,
    SummaryMetrics,
    TaskMetrics,
)
from attn.hedgehog.training import AttentionDistiller, HedgehogFinetune, Schedule, TrainableStateModule, quiet_trainer
from attn.shared_eval.claims import Context, Outcome, experiment
from attn.shared_eval.claims.files import write_whole

SAVE_EVERY = timedelta(minutes=10)

GPT2 = "download the snapshot of openai-community/gpt2"
WIKITEXT = "download the files of Salesforce/wikitext, configuration wikitext-103-raw-v1"
BERT = "download the snapshot of google-bert/bert-base-uncased"
GLUE = "download the files of nyu-mll/glue, a folder for each task"
VIT = "download the snapshot of google/vit-base-patch16-224"
IMAGENET = "download the files of ILSVRC/imagenet-1k (gated), or unpack a folder for each class"
LLAMA = "download the snapshot of meta-llama/Llama-2-7b-hf (gated)"
SAMSUM = "download the files of Samsung/samsum"


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        epochs: passes over the training split.
        lr: learning rate.
        accumulate: batches for an optimizer step.
        schedule: of the learning rate; distillation has its own, which falls on a plateau.
        weight_decay: of everything but the maps.
        max_steps: optimizer steps at which the training ends early; -1 is no limit.
    """

    epochs: int
    lr: float
    accumulate: int = 1
    schedule: Schedule = "constant"
    weight_decay: float = 0.01
    max_steps: int = -1


@dataclass(frozen=True)
class Settings:
    """How the models of one experiment are trained and tested.

    Attributes:
        finetune: the second stage, or the only one.
        distill: the first stage, of converted models that are distilled.
        teacher: finetuning of the softmax model on the task before the conversion, where no checkpoint has it.
        batch_size: examples in a batch.
        eval_batch_size: the same in evaluation.
        length: tokens of a window or at which a sequence is cut; not for images.
        precision: Lightning's; weights are in the dtype that they are loaded in.
        num_workers: processes that load images.
        max_new_tokens: of a summary.
    """

    finetune: Stage
    distill: Stage = Stage(epochs=2, lr=1e-2)
    teacher: Stage = Stage(epochs=3, lr=2e-5, accumulate=4)
    batch_size: int = 8
    eval_batch_size: int = 8
    length: int = 1024
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    num_workers: int = 0
    max_new_tokens: int = 128


GPT2_SETTINGS = Settings(finetune=Stage(epochs=2, lr=6e-4, schedule="cosine"))
"""The paper's two epochs of distillation, batches of 8, 1,024 tokens and 6e-4; two epochs of finetuning are ours."""

GLUE_SETTINGS = Settings(finetune=Stage(epochs=5, lr=1e-5), eval_batch_size=64, length=128)
"""Ours, as the paper's are not known; the teacher's are BERT's own (batch 32)."""

IMAGENET_SETTINGS = Settings(
    finetune=Stage(epochs=2, lr=1e-5, schedule="cosine"), batch_size=32, eval_batch_size=128, num_workers=8
)
"""Ours, as the paper's are not known; images are resized and not augmented."""

SAMSUM_SETTINGS = Settings(
    finetune=Stage(epochs=2, lr=1e-4, accumulate=8), distill=Stage(epochs=2, lr=1e-2, accumulate=8), batch_size=1
)
"""Two epochs of LoRA, rank 8 and alpha 16, are the paper's; 1e-4 and eight batches of one are LoLCATs'."""

SCRATCH_SETTINGS = Settings(
    finetune=Stage(epochs=100, lr=6e-4, accumulate=32, schedule="warmup-cosine", weight_decay=0.1),
    precision="bf16-mixed",
)
"""Ours: the usual recipe for 125 M parameters on this corpus, 256 windows in a batch; the paper's is not known."""


@experiment
def gpt2_wikitext103(context: Context) -> Outcome:
    """Perplexity of GPT-2 on WikiText-103, converted by distillation and finetuning (table 10); see `convert_gpt2`."""
    return convert_gpt2(context)


@experiment
def bert_glue(context: Context) -> Outcome:
    """Scores of BERT on the eight tasks of GLUE, finetuned, then converted (GLUE table); see `convert_bert`."""
    return convert_bert(context)


@experiment
def vit_imagenet(context: Context) -> Outcome:
    """Top-1 accuracy of ViT-B/16 on ImageNet, converted (ImageNet table); see `convert_vit`."""
    return convert_vit(context)


@experiment
def llama2_samsum(context: Context) -> Outcome:
    """ROUGE of Llama-2 7B on SAMSum, converted, with LoRA (table 11); see `convert_llama2`."""
    return convert_llama2(context)


@experiment
def gpt_from_scratch_wikitext103(context: Context) -> Outcome:
    """Perplexity of models of GPT-2's size trained from scratch (WikiText-103 table); see `train_gpt`."""
    return train_gpt(context)


def convert_gpt2(context: Context, settings: Settings = GPT2_SETTINGS) -> Outcome:
    """GPT-2 as it is, finetuned, and converted: distilled Hedgehog and undistilled T2R, all weights finetuned.

    Figures are perplexities per token on the test split, and the divergences of `Arm.divergences`.

    Raises:
        MissingData: if checkpoint or corpus is not below the data root.
    """
    checkpoint, data = _wikitext(context, settings)

    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)

    trainings = Trainings(context, settings, total=4)
    arms: dict[str, dict[str, Any]] = {
        "softmax_zero_shot": {"finetune": None},
        "softmax_finetuned": {},
        "hedgehog": {"feature_map": "hedgehog", "distill": settings.distill},
        "t2r": {"feature_map": "t2r"},
    }
    figures: dict[str, float] = {}
    for name, options in arms.items():
        arm = Arm(trainings, name, load, data, LanguageModelMetrics, **{"finetune": settings.finetune} | options)
        figures |= arm.divergences() | {name: arm.kept(name, lambda scores: scores["test_perplexity"])}
    return Outcome(figures)


def train_gpt(context: Context, settings: Settings = SCRATCH_SETTINGS) -> Outcome:
    """Models of GPT-2's configuration from random weights, for softmax and three maps: perplexity on the test split.

    Raises:
        MissingData: if configuration, tokenizer or corpus is not below the data root.
    """
    checkpoint, data = _wikitext(context, settings)

    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint), dtype=torch.float32)

    trainings = Trainings(context, settings, total=4)
    figures: dict[str, float] = {}
    for name in ("softmax", "hedgehog", "elu", "performer"):
        feature_map = None if name == "softmax" else name
        arm = Arm(
            trainings, name, load, data, LanguageModelMetrics, feature_map=feature_map, finetune=settings.finetune
        )
        figures[name] = arm.kept(name, lambda scores: scores["test_perplexity"])
    return Outcome(figures)


def _percent(name: str) -> Callable[[dict[str, float]], float]:
    return lambda scores: 100 * scores[name]


GLUE_SCORES = {task: _percent("test_accuracy") for task in GLUE_COLUMNS} | {
    "cola": _percent("test_matthews"),
    "mrpc": _percent("test_f1"),
    "stsb": lambda scores: 50 * (scores["test_pearson"] + scores["test_spearman"]),
}
"""The score of each task in per cent, from what a test logs. QQP's is accuracy: finetuned BERT's 91.0 can be no F1."""


def convert_bert(context: Context, settings: Settings = GLUE_SETTINGS) -> Outcome:
    """BERT finetuned on each task, then Hedgehog distilled on the task's training inputs and finetuned.

    Figures are ``<task>`` for Hedgehog, ``softmax_<task>``, the divergences ``kl_<task>`` and
    ``kl_<task>_undistilled``, and ``recovered``: Hedgehog's mean score by that of softmax, per cent (as the paper's
    99.3 follows from its table).

    Raises:
        MissingData: if a checkpoint or task is not below the data root.
    """
    folders = {task: str(context.require(f"glue/{task}", GLUE)) for task in GLUE_COLUMNS}
    bert = context.require("bert-base-uncased", BERT)
    finetuned = {task: bert.with_name(f"bert-base-uncased-{task}") for task in GLUE_COLUMNS}
    total = sum(2 if finetuned[task].exists() else 3 for task in GLUE_COLUMNS)
    trainings = Trainings(context, settings, total)
    figures: dict[str, float] = {}
    for task, folder in folders.items():
        exists = finetuned[task].exists()
        checkpoint = str(finetuned[task] if exists else bert)
        num_labels = {"mnli": 3, "stsb": 1}.get(task, 2)
        data = GlueData(
            folder,
            task,
            checkpoint,
            max_length=settings.length,
            batch_size=settings.batch_size,
            eval_batch_size=settings.eval_batch_size,
            seed=context.seed,
        )

        def load(checkpoint: str = checkpoint, num_labels: int = num_labels) -> PreTrainedModel:
            return AutoModelForSequenceClassification.from_pretrained(
                checkpoint, num_labels=num_labels, dtype=torch.float32
            )

        def metrics(num_labels: int = num_labels) -> TaskMetrics:
            return RegressionMetrics() if num_labels == 1 else ClassificationMetrics(num_labels)

        teacher = None if exists else settings.teacher
        softmax = Arm(trainings, f"softmax_{task}", load, data, metrics, finetune=teacher)
        figures[f"softmax_{task}"] = softmax.kept(f"softmax_{task}", GLUE_SCORES[task])
        hedgehog = Arm(
            trainings,
            task,
            softmax.trained_model,
            data,
            metrics,
            feature_map="hedgehog",
            distill=settings.distill,
            finetune=settings.finetune,
        )
        figures |= hedgehog.divergences() | {task: hedgehog.kept(task, GLUE_SCORES[task])}
    hedgehog_sum, softmax_sum = (sum(figures[prefix + task] for task in GLUE_COLUMNS) for prefix in ("", "softmax_"))
    return Outcome(figures | {"recovered": 100 * hedgehog_sum / softmax_sum})


def convert_vit(context: Context, settings: Settings = IMAGENET_SETTINGS) -> Outcome:
    """ViT as it is, and with Hedgehog and T2R maps, both distilled, all weights finetuned: top-1 accuracy, per cent.

    Raises:
        MissingData: if checkpoint or images are not below the data root.
    """
    checkpoint = str(context.require("vit-base-patch16-224", VIT))
    data = ImageData(
        str(context.require("imagenet-1k", IMAGENET)),
        checkpoint,
        batch_size=settings.batch_size,
        eval_batch_size=settings.eval_batch_size,
        num_workers=settings.num_workers,
        seed=context.seed,
    )
    classes = AutoConfig.from_pretrained(checkpoint).num_labels

    def load() -> PreTrainedModel:
        return AutoModelForImageClassification.from_pretrained(checkpoint, dtype=torch.float32)

    def metrics() -> TaskMetrics:
        return ClassificationMetrics(classes)

    trainings = Trainings(context, settings, total=4)
    arms: dict[str, dict[str, Any]] = {
        "softmax": {},
        "hedgehog": {"feature_map": "hedgehog", "distill": settings.distill, "finetune": settings.finetune},
        "t2r": {"feature_map": "t2r", "distill": settings.distill, "finetune": settings.finetune},
    }
    figures: dict[str, float] = {}
    for name, options in arms.items():
        arm = Arm(trainings, name, load, data, metrics, **options)
        figures |= arm.divergences() | {name: arm.kept(name, _percent("test_accuracy"))}
    return Outcome(figures)


def convert_llama2(context: Context, settings: Settings = SAMSUM_SETTINGS) -> Outcome:
    """Llama-2 as it is and with LoRA: softmax, distilled Hedgehog, and undistilled T2R; weights in bfloat16.

    Figures are ``<arm>_rouge1``, ``<arm>_rouge2`` and ``<arm>_rougeL`` of greedily generated summaries, per cent, for
    the arms ``softmax_zero_shot``, ``softmax``, ``hedgehog`` and ``t2r``, and Hedgehog's divergences.

    Raises:
        MissingData: if checkpoint or dialogues are not below the data root.
    """
    checkpoint = str(context.require("Llama-2-7b-hf", LLAMA))
    data = SamsumData(
        str(context.require("samsum", SAMSUM)),
        checkpoint,
        max_length=settings.length,
        batch_size=settings.batch_size,
        eval_batch_size=settings.eval_batch_size,
        seed=context.seed,
    )

    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)

    def metrics() -> TaskMetrics:
        return SummaryMetrics(data.tokenizer, max_new_tokens=settings.max_new_tokens)

    trainings = Trainings(context, settings, total=4)
    tuned: dict[str, Any] = {"finetune": settings.finetune, "lora": {"rank": 8, "alpha": 16, "dropout": 0.0}}
    arms: dict[str, dict[str, Any]] = {
        "softmax_zero_shot": {"finetune": None},
        "softmax": {},
        "hedgehog": {"feature_map": "hedgehog", "distill": settings.distill},
        "t2r": {"feature_map": "t2r"},
    }
    figures: dict[str, float] = {}
    for name, options in arms.items():
        arm = Arm(trainings, name, load, data, metrics, **tuned | options)
        figures |= arm.divergences()
        for key in ("rouge1", "rouge2", "rougeL"):
            figures[f"{name}_{key}"] = arm.kept(f"{name}_{key}", _percent(f"test_{key}"))
    return Outcome(figures)


class Trainings:
    """The trainings of an experiment: each goes on where it was killed, and is not repeated once it is finished.

    Args:
        context: of the experiment.
        settings: of the experiment.
        total: how many trainings there are.
    """

    def __init__(self, context: Context, settings: Settings, total: int) -> None:
        self.context, self.settings, self.total = context, settings, total

    @property
    def finished(self) -> int:
        """How many trainings are finished."""
        return len(list(self.context.work_dir.glob("*.safetensors")))

    def fit(self, name: str, module: TrainableStateModule, data: TaskData, stage: Stage, *, validate: bool) -> None:
        """Train, with an evaluation after each epoch or none; afterwards the module has the trained weights."""
        result, checkpoints = self.context.work_dir / f"{name}.safetensors", self.context.work_dir / name
        if not result.exists():
            callbacks = [
                ModelCheckpoint(
                    checkpoints,
                    save_last=True,
                    save_top_k=0,
                    train_time_interval=SAVE_EVERY,
                    enable_version_counter=False,
                ),
                _Steps(self, name),
            ]
            trainer = self._trainer(
                max_epochs=stage.epochs,
                max_steps=stage.max_steps,
                accumulate_grad_batches=stage.accumulate,
                gradient_clip_val=1.0,
                limit_val_batches=1.0 if validate else 0,
                num_sanity_val_steps=0,
                enable_checkpointing=True,
                callbacks=callbacks,
            )
            last = checkpoints / "last.ckpt"
            found = last.exists()
            trainer.fit(module, data, ckpt_path=last if found else None, weights_only=True if found else None)
            state = {key: value.detach().cpu().contiguous() for key, value in module.trained_parameters().items()}
            write_whole(result, save(state))
            shutil.rmtree(checkpoints, ignore_errors=True)
        module.load_state_dict(load_file(result), strict=False)

    def test(self, module: LightningModule, data: TaskData, text: str) -> dict[str, float]:
        """What a module logs on the whole test split."""
        self.context.progress(self.finished, self.total, text)
        (scores,) = self._trainer().test(module, data, verbose=False)
        return dict(scores)

    def validate(self, module: LightningModule, data: TaskData, text: str) -> dict[str, float]:
        """What a module logs on the whole validation split."""
        self.context.progress(self.finished, self.total, text)
        (scores,) = self._trainer().validate(module, data, verbose=False)
        return dict(scores)

    def _trainer(self, **options: Any) -> Trainer:
        return quiet_trainer(self.context.device, precision=self.settings.precision, **options)


class Arm:
    """One model of an experiment: loaded, perhaps converted, perhaps distilled, perhaps finetuned, then tested.

    Nothing of it is done before a figure is asked for that is not kept yet.

    Args:
        trainings: of the experiment.
        name: of the arm, unique in the experiment.
        load: gives the softmax model; random weights that it draws are those of the context's seed.
        data: what it is trained and tested on.
        metrics: makes what it is tested by.
        feature_map: a name in `FEATURE_MAPS`; None is softmax.
        distill: the first stage; None is without.
        finetune: the second stage; None is without.
        lora: options of `lora_config`; None finetunes all weights.
    """

    def __init__(
        self,
        trainings: Trainings,
        name: str,
        load: Callable[[], PreTrainedModel],
        data: TaskData,
        metrics: Callable[[], TaskMetrics],
        *,
        feature_map: str | None = None,
        distill: Stage | None = None,
        finetune: Stage | None = None,
        lora: dict[str, Any] | None = None,
    ) -> None:
        self.trainings, self.name, self.load, self.data, self.metrics = trainings, name, load, data, metrics
        self.feature_map, self.distill, self.finetune, self.lora = feature_map, distill, finetune, lora

    def divergences(self) -> dict[str, float]:
        """KL divergence of linear rows from softmax rows on the validation split, nats: of a distilled arm, else empty.

        ``kl_<name>_undistilled`` is that before distillation, ``kl_<name>`` that after.
        """
        if self.distill is None:
            return {}
        before, after = f"kl_{self.name}_undistilled", f"kl_{self.name}"
        return {
            before: self.trainings.context.kept(before, lambda: self._divergence(self._converted)),
            after: self.trainings.context.kept(after, lambda: self._divergence(self._distilled)),
        }

    def kept(self, figure: str, score: Callable[[dict[str, float]], float]) -> float:
        """A figure made of what the test of the finished model logs."""
        return self.trainings.context.kept(figure, lambda: score(self._scores))

    def trained_model(self) -> PreTrainedModel:
        """The model after all stages."""
        return cast(PreTrainedModel, self._finetuned.model)

    @cached_property
    def _converted(self) -> PreTrainedModel:
        torch.manual_seed(self.trainings.context.seed)
        model = self.load()
        return model if self.feature_map is None else convert(model, feature_map=self.feature_map)

    @cached_property
    def _distilled(self) -> PreTrainedModel:
        model = self._converted
        if self.distill is not None:
            distiller = AttentionDistiller(model, lr=self.distill.lr)
            self.trainings.fit(f"distill_{self.name}", distiller, self.data, self.distill, validate=True)
        return model

    @cached_property
    def _finetuned(self) -> HedgehogFinetune:
        model, stage = self._distilled, self.finetune
        if stage is None:
            return HedgehogFinetune(model, self.metrics())
        torch.manual_seed(self.trainings.context.seed)  # of LoRA's weights
        module = HedgehogFinetune(
            model,
            self.metrics(),
            lr=stage.lr,
            weight_decay=stage.weight_decay,
            schedule=stage.schedule,
            lora=self.lora,
        )
        self.trainings.fit(f"finetune_{self.name}", module, self.data, stage, validate=False)
        return module

    @cached_property
    def _scores(self) -> dict[str, float]:
        return self.trainings.test(self._finetuned, self.data, f"test {self.name}")

    def _divergence(self, model: PreTrainedModel) -> float:
        return self.trainings.validate(AttentionDistiller(model), self.data, f"compare {self.name}")["eval_kl"]


class _Steps(Callback):
    """Reports progress, and seeds dropout by the batch's number: a resumed run needs no generator's state."""

    def __init__(self, trainings: Trainings, name: str) -> None:
        self.trainings, self.name = trainings, name
        self.finished = trainings.finished
        self.steps = 1.0

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.steps = trainer.estimated_stepping_batches

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed((self.trainings.context.seed << 44) + (trainer.current_epoch << 32) + batch_idx)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        done = self.finished + trainer.global_step / self.steps
        self.trainings.context.progress(done, self.trainings.total, self.name.replace("_", " "))


def _wikitext(context: Context, settings: Settings) -> tuple[str, LocalTextData]:
    """The folder of GPT-2, and WikiText-103 in its tokens."""
    checkpoint, corpus = str(context.require("gpt2", GPT2)), str(context.require("wikitext-103-raw-v1", WIKITEXT))
    data = LocalTextData(
        corpus,
        checkpoint,
        context=settings.length,
        batch_size=settings.batch_size,
        eval_batch_size=settings.eval_batch_size,
        seed=context.seed,
    )
    return checkpoint, data
