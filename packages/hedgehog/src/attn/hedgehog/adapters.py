"""Converting transformers models in place: maps beside the projections, Hedgehog as the attention function."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from peft import LoraConfig
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from attn.hedgehog.architectures import ARCHITECTURES, projection_names, self_attentions
from attn.hedgehog.attention import ConvertedAttention, Mode, hedgehog_layers
from attn.hedgehog.cache import check_softmax_cache, linear_cache_layer
from attn.hedgehog.feature_maps import query_key_maps
from attn.hedgehog.interface import LayerMask, register

# Stands in a saved config where transformers looks for the attention implementation to use, and quotes it in its error.
LOAD_WITH = "hedgehog: load this model with attn.hedgehog.from_pretrained"


@dataclass(eq=False)
class Conversion:
    """What `convert` did to a model beside adding layers, for `revert`."""

    softmax: str
    hooks: list[RemovableHandle]


def convert(
    model: PreTrainedModel, *, feature_map: str = "hedgehog", layers: Iterable[int] | None = None, **map_options: Any
) -> PreTrainedModel:
    """Replace softmax self-attention by linear attention (section 4.2 of the paper), in place.

    Every converted attention module gets a submodule ``hedgehog``, a `ConvertedAttention` with a map for queries and
    one for keys, per query head, applied after rotary embedding and after grouped key heads are repeated. No module is
    replaced and all weights stay as they are. The layers start in mode ``"linear"``. Cross-attention keeps softmax.

    Maps of float16 and bfloat16 models are float32, in which they can be trained at the paper's learning rate.

    Args:
        model: a transformers model whose self-attention is one of `ARCHITECTURES`, with attention implementation
            ``"sdpa"`` or ``"eager"``, which its softmax layers go on using.
        feature_map: one of `FEATURE_MAPS`.
        layers: the layers to convert, from 0; None is all.
        map_options: of the feature map's class.

    Returns:
        The model.

    Raises:
        TypeError: if the model is of another class, or the map lacks an option.
        ValueError: if the model is converted already, or `feature_map`, an option or `layers` is not valid.
        NotImplementedError: if a layer has a sliding window, or the attention implementation is another one.
    """
    found = _check_convertible(model)
    chosen = sorted(found) if layers is None else sorted(set(layers))
    for index in chosen:
        if index not in found:
            raise ValueError(f"layers must lie in 0 to {max(found)}, got {index}")
        module = found[index][1]
        window = getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))
        if window is not None:
            raise NotImplementedError(
                f"layers must be without a sliding window, got layer {index} with one of {window} tokens: "
                "name the others in layers"
            )
    if not chosen:
        raise ValueError("layers must name at least one layer, got none")
    softmax = model.config._attn_implementation
    if softmax == "eager" and getattr(model.config, "reorder_and_upcast_attn", False):
        raise NotImplementedError(
            "model must not have reorder_and_upcast_attn with eager attention: load it with 'sdpa'"
        )
    name = register(softmax)
    attentions = {index: _converted_attention(found[index][1], feature_map, map_options) for index in chosen}
    hooks = [model.base_model.register_forward_pre_hook(_prepare_call, with_kwargs=True)]
    for index, attention in attentions.items():
        module = found[index][1]
        module.hedgehog = attention
        hooks.append(module.register_forward_pre_hook(_prepare_cache, with_kwargs=True))
    model.hedgehog_conversion = Conversion(softmax, hooks)  # type: ignore[assignment]
    # Not set_attn_implementation, which only warns where it cannot read a class's source (notebooks).
    model.config._attn_implementation = name
    model.config.attn_implementation = LOAD_WITH
    model.config.hedgehog = {"feature_map": feature_map, "layers": chosen, "map_options": map_options}
    return model


def revert(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `convert`: maps, hooks and the config's entries go; weights stay as they are.

    Raises:
        ValueError: if the model is not converted.
    """
    conversion: Conversion | None = getattr(model, "hedgehog_conversion", None)
    if conversion is None:
        raise ValueError(f"model must be converted, got a {type(model).__name__} that is not")
    for hook in conversion.hooks:
        hook.remove()
    for _, module in self_attentions(model).values():
        if hasattr(module, "hedgehog"):
            del module.hedgehog
    del model.hedgehog_conversion, model.config.attn_implementation, model.config.hedgehog
    model.config._attn_implementation = conversion.softmax
    return model


def set_mode(model: nn.Module, mode: Mode) -> None:
    """Put all converted layers of a model, or of one that wraps it (PEFT, Lightning), into a mode.

    Args:
        model: holds converted layers.
        mode: ``"linear"``; ``"softmax"``, as before the conversion; ``"distill"``, which passes the softmax output on,
            without attention dropout, and records each layer's loss: see `ConvertedAttention`.

    Raises:
        ValueError: if the mode is unknown, or no layer is converted.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {get_args(Mode)}, got {mode!r}")
    for layer in hedgehog_layers(model):
        layer.mode = mode
        layer.distillation_loss = layer.teacher_entropy = None


def lora_config(
    model: nn.Module, *, rank: int = 8, alpha: int = 16, dropout: float = 0.0, **options: Any
) -> LoraConfig:
    """PEFT's configuration for stage two: LoRA on the query, key, value and output projections of self-attention.

    ``peft.get_peft_model(model, lora_config(model))`` then trains and saves the maps beside the adapters.

    Args:
        model: a model whose self-attention is one of `ARCHITECTURES`, converted or, for the softmax baseline, not.
        rank: the paper's for Llama-2 is 8.
        alpha: the paper's is 16.
        dropout: of LoRA; LoLCATs' is 0.
        options: more of `peft.LoraConfig`, such as task_type.

    Raises:
        TypeError: if the model is of another class.
    """
    found = self_attentions(model).values()
    if not found:
        raise _unknown_class(model)
    defaults: dict[str, Any] = {
        "target_modules": [target for name, module in found for target in projection_names(name, module)],
        "modules_to_save": ["query_map", "key_map"],
        "fan_in_fan_out": any(type(module).__name__ == "GPT2Attention" for _, module in found),
    }
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, **defaults | options)


def _check_convertible(model: PreTrainedModel) -> dict[int, tuple[str, Any]]:
    """The model's self-attention modules by layer, if it can be converted."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers PreTrainedModel, got {type(model).__name__}")
    if hasattr(model, "hedgehog_conversion"):
        raise ValueError("model must be unconverted, got one that is converted already: revert it first")
    found = self_attentions(model)
    if not found or any(module.config is not model.config for _, module in found.values()):
        raise _unknown_class(model)
    return found


def _unknown_class(model: nn.Module) -> TypeError:
    accepted = ", ".join(ARCHITECTURES)
    return TypeError(f"model must have self-attention of one of the classes {accepted}, got a {type(model).__name__}")


def _converted_attention(module: Any, feature_map: str, options: dict[str, Any]) -> ConvertedAttention:
    """Maps of the attention module's size, on its device."""
    head_dim = module.head_dim if hasattr(module, "head_dim") else module.attention_head_size
    weight = next(module.parameters())
    maps = query_key_maps(feature_map, module.config.num_attention_heads, head_dim, **options)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return ConvertedAttention(*maps).to(weight.device, dtype).train(module.training)


def _prepare_cache(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before a converted attention module runs: hand its part of the cache through to the attention function."""
    cache = kwargs.get("cache")
    if cache is None:
        return None
    if module.hedgehog.mode != "linear":
        check_softmax_cache(cache, module.layer_idx)
        return None
    return args, kwargs | {"linear_cache": linear_cache_layer(cache, module.layer_idx)}


def _prepare_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before the model runs: adapt what transformers' generic code hands to it."""
    changed: dict[str, Any] = {}
    # Some models keep the wish for attention weights from their layers.
    if kwargs.get("output_attentions", module.config.output_attentions):
        changed["return_weights"] = True
    # generate makes the mask for a static cache beforehand; such a cache serves softmax layers alone.
    if isinstance(kwargs.get("attention_mask"), LayerMask):
        changed["attention_mask"] = kwargs["attention_mask"].softmax_mask()
    return (args, kwargs | changed) if changed else None
