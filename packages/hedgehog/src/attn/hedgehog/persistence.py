"""Loading converted models. They are saved by transformers' own ``model.save_pretrained(folder)``."""

from os import PathLike
from typing import Any, cast

import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from attn.hedgehog.adapters import convert


def from_pretrained(name_or_path: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """Load a converted model that was saved by its ``save_pretrained``, in mode ``"linear"``.

    The saved config records the conversion. It also names an attention implementation that transformers does not know,
    so that ``AutoModel.from_pretrained`` refuses the folder rather than return a softmax model without its maps.

    Args:
        name_or_path: a folder, or the name of a model on the hub.
        options: of transformers' ``from_pretrained``, such as dtype and device_map; attn_implementation is that of the
            layers which were not converted. Maps stay in float32 (or float64) whatever the dtype.

    Raises:
        ValueError: if the model is not converted, or weights are missing or superfluous.
    """
    hub_options = {
        key: options[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in options
    }
    config = AutoConfig.from_pretrained(name_or_path, **hub_options)
    record = getattr(config, "hedgehog", None)
    if record is None:
        raise ValueError(f"name_or_path must hold a converted model, got {str(name_or_path)!r} without a record of it")
    del config.hedgehog
    config._attn_implementation = options.pop("attn_implementation", None)
    model_class: type[PreTrainedModel] = getattr(transformers, config.architectures[0])
    loaded: Any = _converted_class(model_class, record).from_pretrained(
        name_or_path, config=config, output_loading_info=True, use_safetensors=True, **options
    )
    model, report = loaded
    model.__class__ = model_class
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise ValueError(
                f"{str(name_or_path)!r} must hold the converted model's weights, got {kind} {report[kind]}"
            )
    return cast(PreTrainedModel, model)


def _converted_class(model_class: type[PreTrainedModel], record: dict[str, Any]) -> type[PreTrainedModel]:
    """The model's class, made to convert itself before transformers fills in the weights."""

    def initialize(self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        options = record["map_options"]
        convert(self, feature_map=record["feature_map"], layers=record["layers"], **options)

    # transformers knows a class by its module and name.
    attributes = {
        "__init__": initialize,
        "__module__": model_class.__module__,
        "__qualname__": model_class.__qualname__,
    }
    return type(model_class.__name__, (model_class,), attributes)
