"""Small pretrained models: recipes that train them, gates that admit them, and the hash-checked checkpoints."""

from attn.shared_eval.models.card import Card
from attn.shared_eval.models.checkpoint import CheckpointError, MiniModel, load_mini
from attn.shared_eval.models.gates import Figure, Gate
from attn.shared_eval.models.recipe import Recipe, find_recipe, registered_recipes

__all__ = [
    "Card",
    "CheckpointError",
    "Figure",
    "Gate",
    "MiniModel",
    "Recipe",
    "find_recipe",
    "load_mini",
    "registered_recipes",
]
