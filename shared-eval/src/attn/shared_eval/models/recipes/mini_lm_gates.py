"""What ``mini-lm`` must measure, apart from its recipe: a figure may be added without training again."""

from attn.shared_eval.models.gates import Gate

NOTES = ""


def gates(seed: int) -> list[Gate]:
    """None yet."""
    return []
