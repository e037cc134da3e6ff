"""Convert a BERT classifier and a GPT-2 with the installed attn-hedgehog; run by wheels.sh outside the workspace."""

import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import attn.hedgehog


def main() -> None:
    """Convert, run, and check that the outputs are finite and not those of softmax attention."""
    place = Path(attn.hedgehog.__file__)
    if not place.is_relative_to(sys.prefix):
        sys.exit(f"attn.hedgehog must come from a wheel in {sys.prefix}, got {place}")
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    gpt2 = GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    tokens = torch.arange(1, 21).reshape(2, 10)
    for model in (BertForSequenceClassification(bert), GPT2LMHeadModel(gpt2)):
        model.eval()
        with torch.no_grad():
            before = model(tokens).logits
            after = attn.hedgehog.convert(model)(tokens).logits
        if not after.isfinite().all() or torch.equal(before, after):
            sys.exit(f"converting {type(model).__name__} must change its outputs and keep them finite")
        print(f"converted {type(model).__name__} with {place.parent.parent.parent.name}/attn/hedgehog")


if __name__ == "__main__":
    main()
