"""Attention distillation in one call."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attn.hedgehog.architectures import self_attentions
from attn.hedgehog.attention import Objective
from attn.hedgehog.data import Batch, Batches, language_model_batch, windows
from attn.hedgehog.training import AttentionDistiller


def distill(
    model: PreTrainedModel,
    data: Sequence[str] | Iterable[Batch],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    validation: Sequence[str] | Iterable[Batch] | None = None,
    epochs: int = 2,
    steps: int = -1,
    batch_size: int = 8,
    context: int = 1024,
    objective: Objective = "cross_entropy",
    lr: float = 1e-2,
    seed: int = 0,
    **trainer_options: Any,
) -> dict[str, float]:
    """Train the maps of a converted model to mimic its softmax attention (section 4.2), with a progress bar.

    The model comes back in the mode that it had, on its device, with new maps and nothing else changed.

    Args:
        model: a converted model.
        data: texts, or batches of the model's inputs that can be iterated once per epoch. The texts become windows of
            `context` tokens, one text after the other, for a causal model; otherwise sequences of their own, cut there.
        tokenizer: for texts.
        validation: more of the same, evaluated after each epoch: the maps of the best evaluation are kept, and the
            learning rate falls on a plateau.
        epochs: passes over the data; the paper's for GPT-2 is 2.
        steps: stop after so many steps; -1 is no limit.
        batch_size: of texts; the paper's for GPT-2 is 8.
        context: tokens, at most the model's positions; the paper's for GPT-2 is 1024.
        objective: ``"cross_entropy"`` of attention weights (the paper's) or ``"output_mse"`` (LoLCATs').
        lr: of AdamW on the maps, without weight decay.
        seed: of the order of texts.
        trainer_options: of Lightning's ``Trainer``, such as accelerator, precision, or enable_progress_bar.

    Returns:
        Losses averaged over layers, in nats: ``train_loss`` of the last step and, with validation, ``eval_loss`` and
        ``eval_kl`` of the maps that the model has now.

    Raises:
        ValueError: if the model has no maps to train, or the texts are fewer tokens than the context.
        TypeError: if texts come without a tokenizer.
    """
    distiller = AttentionDistiller(model, objective=objective, lr=lr)
    context = min(context, getattr(model.config, "max_position_embeddings", context))

    def loader(data: Sequence[str] | Iterable[Batch], shuffle: bool) -> Iterable[Batch]:
        if isinstance(data, Sequence) and isinstance(data[0], str):
            return _text_batches(model, cast(Sequence[str], data), tokenizer, context, batch_size, shuffle, seed)
        # Lightning takes a list for a list of loaders.
        return Batches(data, 1, collate=_only) if isinstance(data, Sequence) else data

    defaults: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=epochs, max_steps=steps, **defaults | trainer_options)
    device = model.device
    held_out = None if validation is None else loader(validation, shuffle=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*have no `val_dataloader`")  # as asked for
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning 2.6 with torch 2.15
        trainer.fit(distiller, loader(data, shuffle=True), held_out)
        losses: dict[str, Any] = dict(trainer.callback_metrics)
        if held_out is not None:
            losses |= trainer.validate(distiller, held_out, verbose=False)[0]
    model.to(device)  # type: ignore[arg-type]
    return {name: float(value) for name, value in losses.items() if "/" not in name}


def _text_batches(
    model: PreTrainedModel,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    context: int,
    batch_size: int,
    shuffle: bool,
    seed: int,
) -> Batches:
    if tokenizer is None:
        raise TypeError("tokenizer must be given with texts, got None")
    if any(module.is_causal for _, module in self_attentions(model).values()):
        encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        tokens = torch.cat([torch.tensor(ids, dtype=torch.int32) for ids in encoded])
        examples = windows(tokens, context)
        return Batches(
            examples, min(batch_size, len(examples)), collate=language_model_batch, shuffle=shuffle, seed=seed
        )

    def pad(rows: Sequence[str]) -> Batch:
        return dict(tokenizer(rows, padding=True, truncation=True, max_length=context, return_tensors="pt"))

    return Batches(texts, min(batch_size, len(texts)), collate=pad, shuffle=shuffle, seed=seed)


def _only(batches: Sequence[Batch]) -> Batch:
    return batches[0]
