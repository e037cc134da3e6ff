"""Which papers use which model: their pins must be measured again when a checkpoint is replaced."""

import importlib.resources
import tomllib

from attn.shared_eval.models.recipe import find_recipe, registered_recipes


def users(name: str) -> list[str]:
    """Papers (folder names in ``packages``) that load the model of this name: from ``users.toml``, or its owner."""
    owner = find_recipe(name).package
    if owner != __package__:
        return [owner.removeprefix("attn.").replace("_", "-")]
    table = tomllib.loads(importlib.resources.files(__package__).joinpath("users.toml").read_text(encoding="utf-8"))
    return list(table.get(name, {}).get("papers", []))


def variants(name: str) -> list[str]:
    """Registered models that share tensors with this one, and must be trained again when it is replaced."""
    return [other for other in registered_recipes() if find_recipe(other).parent == name]
