"""Train, check and list the small models: ``python -m attn.shared_eval.models --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from attn.shared_eval.models.card import Card
from attn.shared_eval.models.checkpoint import MANIFEST, CheckpointError, read_card
from attn.shared_eval.models.recipe import RecipeError, find_recipe, registered_recipes
from attn.shared_eval.models.training import GateError, accept, problems, train
from attn.shared_eval.models.users import users, variants


def parser() -> ArgumentParser:
    """The command line: three commands, and every argument of Lightning's Trainer under ``--trainer``."""
    training = ArgumentParser(description="Train a model, measure its gates, and ship it if asked to.")
    training.add_argument("name", type=str, help="a registered recipe, such as mini-bert")
    training.add_argument("--accept", action="store_true", help="replace the shipped checkpoint if every gate passes")
    training.add_argument("--folder", type=Path, default=Path("build/mini"), help="where runs are kept and resumed")
    training.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU")
    training.add_argument("--data.batch_scale", type=int, default=1, help="how many times larger the batch is")
    training.add_argument("--data.num_workers", type=int, default=0, help="processes that draw batches")
    training.add_class_arguments(Trainer, "trainer")
    checking = ArgumentParser(description="Verify the files, the quick gates and the cards of all shipped models.")
    listing = ArgumentParser(description="List the registered models and their shipped checkpoints.")
    root = ArgumentParser(prog="python -m attn.shared_eval.models", description="The small pretrained models.")
    commands = root.add_subcommands(dest="command")
    commands.add_subcommand("train", training)
    commands.add_subcommand("check", checking)
    commands.add_subcommand("list", listing)
    return root


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 1 if a gate or a check fails, 2 if the request makes no sense."""
    console = Console()
    commands = parser()
    arguments = commands.parse_args(args)
    try:
        if arguments.command == "train":
            given = commands.parse_args(args, defaults=False).train.get("trainer", Namespace())
            return _train(arguments.train, given.as_dict(), console)
        return _check(console) if arguments.command == "check" else _list(console)
    except (GateError, CheckpointError, RecipeError) as error:
        console.print(str(error), style="red", soft_wrap=True, highlight=False)
        return 2 if isinstance(error, RecipeError) else 1


def _train(arguments: Namespace, trainer_options: dict, console: Console) -> int:
    recipe = find_recipe(arguments.name)
    torch.set_num_threads(arguments.threads)
    folder = arguments.folder / recipe.name
    card = train(
        recipe,
        folder,
        trainer_options=trainer_options,
        batch_scale=arguments.data.batch_scale,
        num_workers=arguments.data.num_workers,
    )
    console.print(_gate_table(card))
    if not arguments.accept:
        return 0 if all(figure.passed for figure in card.figures) else 1
    accept(recipe, folder)
    console.print(f"{recipe.name} is shipped in {recipe.checkpoint_folder}", soft_wrap=True)
    for paper in users(recipe.name):
        console.print(f"measure the pins again: nox -s reproduce-{paper} -- --repin")
    for variant in variants(recipe.name):
        console.print(f"train the variant again: nox -s train_mini -- {variant} --accept")
    return 0


def _gate_table(card: Card) -> Table:
    table = Table(title=f"{card.name}: {card.steps} steps of {card.batch_size} on {card.device}")
    for column in ("gate", "figure", "must be", "samples", "verdict"):
        table.add_column(column)
    for figure in card.figures:
        verdict = "passes" if figure.passed else "fails"
        table.add_row(figure.name, f"{figure.value:.4g}", figure.band, str(figure.samples), verdict)
    return table


def _check(console: Console) -> int:
    sound = True
    for name in registered_recipes():
        recipe = find_recipe(name)
        if not (recipe.checkpoint_folder / MANIFEST).exists():
            console.print(f"{name}: not shipped")
            continue
        found = problems(recipe)
        sound = sound and not found
        console.print(f"{name}: {'; '.join(found) or 'sound'}", soft_wrap=True)
    return 0 if sound else 1


def _list(console: Console) -> int:
    table = Table()
    for column in ("model", "recipe", "parameters", "figures", "papers"):
        table.add_column(column)
    for name in registered_recipes():
        recipe = find_recipe(name)
        source = f"{type(recipe).__module__}:{type(recipe).__qualname__}"
        if (recipe.checkpoint_folder / MANIFEST).exists():
            card = read_card(recipe.checkpoint_folder)
            figures = ", ".join(f"{figure.name} {figure.value:.3g}" for figure in card.figures)
            table.add_row(name, source, f"{card.parameters:,}", figures, ", ".join(users(name)))
        else:
            table.add_row(name, source, "", "not shipped", ", ".join(users(name)))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
