"""Small random models of the real transformers classes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.4}
TEXT = SIZES | {"vocab_size": 40, "max_position_embeddings": 64, "pad_token_id": 0}
DECODER = TEXT | {"intermediate_size": 32, "num_key_value_heads": 2, "eos_token_id": None, "bos_token_id": 1}
ENCODER = TEXT | {"intermediate_size": 32}
IMAGE = SIZES | {"intermediate_size": 32, "image_size": 8, "patch_size": 2, "num_labels": 3}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "AutoModelForCausalLM", DECODER),
    "mistral": ("MistralConfig", "AutoModelForCausalLM", DECODER | {"sliding_window": None}),
    "qwen2": ("Qwen2Config", "AutoModelForCausalLM", DECODER),
    "qwen3": ("Qwen3Config", "AutoModelForCausalLM", DECODER | {"head_dim": 8}),
    "gemma": ("GemmaConfig", "AutoModelForCausalLM", DECODER | {"head_dim": 8}),
    "gpt2": ("GPT2Config", "AutoModelForCausalLM", TEXT | {"eos_token_id": None, "bos_token_id": 1}),
    "bert": ("BertConfig", "AutoModelForSequenceClassification", ENCODER),
    "roberta": ("RobertaConfig", "AutoModelForSequenceClassification", ENCODER),
    "vit": ("ViTConfig", "AutoModelForImageClassification", IMAGE),
    "deit": (
        "DeiTConfig",
        "AutoModelForImageClassification",
        IMAGE | {"architectures": ["DeiTForImageClassification"]},
    ),
}


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """Make a model by name, in eval mode: the same weights each time, so large that attention is not uniform."""

    def make(
        name: str, *, attention: str = "sdpa", dtype: torch.dtype = torch.float32, **changes: Any
    ) -> PreTrainedModel:
        config_class, auto_class, sizes = MODELS[name]
        config = getattr(transformers, config_class)(**sizes | changes)
        generator_state = torch.get_rng_state()
        torch.manual_seed(0)
        model = getattr(transformers, auto_class).from_config(config, attn_implementation=attention, dtype=dtype)
        torch.set_rng_state(generator_state)
        return model.eval()

    return make


@pytest.fixture
def batch_for() -> Callable[..., dict[str, torch.Tensor]]:
    """Make inputs for a model: two texts of nine tokens, the first padded by three, or two images."""

    def make(model: PreTrainedModel, *, padding: str | None = None, tokens: int = 9) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        if model.main_input_name == "pixel_values":
            return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64).to(model.dtype)}
        batch = {"input_ids": torch.randint(2, 40, (2, tokens), generator=generator)}
        if padding is not None:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            batch["attention_mask"][0, slice(3) if padding == "left" else slice(-3, None)] = 0
        return batch

    return make


@pytest.fixture
def randomize() -> Callable[[torch.nn.Module], None]:
    """Give the maps of a converted model weights that no other layer or head has."""

    def draw(model: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "_map." in name:
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.add_(0.5 * noise.to(parameter.dtype))

    return draw
