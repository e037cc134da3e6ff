"""What the pages take from the code when the site is built, so that they cannot say anything else."""

import contextlib
import csv
import inspect
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gallery import gallery
from pydantic import BaseModel

from attn.core_kernels import capability_table
from attn.shared_eval.claims import commands as claims_commands
from attn.shared_eval.claims import ledger
from attn.shared_eval.claims.report import Report
from attn.shared_eval.models import __main__ as models_commands


def fill_in(text: str) -> str:
    """A page with every marker ``<!-- from the code: NAME -->`` replaced by what `MAKERS` makes.

    Raises:
        KeyError: if there is no maker of that name.
    """
    return re.sub(r"<!-- from the code: (.+?) -->", lambda marker: MAKERS[marker[1]](), text)


def option_help(main: Callable[[list[str]], object], command: str) -> str:
    """What ``--help`` of a command prints below its usage, without the options that go to Lightning's Trainer."""
    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"  # argparse wraps two before it
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([command, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    text = re.split(r"\n\n", printed.getvalue(), maxsplit=1)[1]
    text = text.partition("\nCustomize every aspect of training")[0]
    return f"```text\n{text.strip()}\n```"


def exit_codes() -> str:
    """The paragraph of the command's docstring."""
    paragraph = inspect.getdoc(claims_commands).partition("\n\n")[2]  # type: ignore[union-attr]
    codes = " ".join(paragraph.split()).removeprefix("Exit codes: ").rstrip(".").split("; ")
    rows = [code.partition(", ") for code in codes]
    return "\n".join(["| exit code | meaning |", "|--:|---|", *(f"| {code} | {text} |" for code, _, text in rows)])


def ledger_example() -> str:
    """The ledger in the docstring of its module."""
    return "```toml" + inspect.getdoc(ledger).partition("```toml")[2]  # type: ignore[union-attr]


def keys(model: type[BaseModel]) -> str:
    """A table for each table or object of a schema: its keys, their types, what they mean."""
    schema = model.model_json_schema()
    root = model.__name__
    parts = [f"**{root}**: {_first(schema)}", *_rows(root, schema)]
    for name, part in schema.get("$defs", {}).items():
        parts += [f"\n({_anchor(root, name)})=\n**{name}**: {_first(part)}", *_rows(root, part)]
    return "\n".join(parts)


def _rows(root: str, schema: dict[str, Any]) -> Iterator[str]:
    required = set(schema.get("required", ()))
    yield "\n| key | type | |\n|---|---|---|"
    for key, value in schema["properties"].items():
        meaning = [" ".join(value.get("description", "").split())]
        if key not in required:
            default = value.get("default")
            meaning.append("Optional." if default in (None, {}) else f"Default: `{json.dumps(default)}`.")
        yield f"| `{key}` | {_type(root, value)} | {' '.join(meaning).strip()} |"


def _first(schema: dict[str, Any]) -> str:
    return str(schema["description"]).partition("\n\n")[0]


def _anchor(root: str, name: str) -> str:
    return f"{root}-{name}".lower()


def _type(root: str, schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{_anchor(root, name)})"
    if "anyOf" in schema:
        return " or ".join(_type(root, part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"list of {_type(root, schema['items'])}"
    if schema["type"] == "object":
        values = [*schema.get("patternProperties", {}).values()] or [schema["additionalProperties"]]
        return f"table of {_type(root, values[0])}"
    limits = [f"at least {schema['minimum']:g}"] if "minimum" in schema else []
    limits += [f"`{schema['pattern']}`"] if "pattern" in schema else []
    return ", ".join([str(schema.get("format", schema["type"])), *limits])


def report_schema() -> str:
    """The JSON schema of a report."""
    return f"```json\n{json.dumps(Report.model_json_schema(), indent=1)}\n```"


def benchmarks(device: str) -> str:
    """The table of the operators' benchmarks on ``"cpu"`` or ``"cuda"``, below what it was measured with."""
    folder = Path(__file__).parents[1] / "core-kernels/benchmarks/results"
    lines, machines = [], {}
    for path in sorted(folder.glob(f"*_{device}.csv")):
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
        baselines = {row["shape"]: row for row in rows if row["impl"] == row["baseline"]}
        for row in rows:
            machines[f"{row['device']}, {row['threads']} thread, torch {row['torch']}, triton {row['triton']}"] = None
            if (base := baselines.get(row["shape"])) is None or row is base:
                continue
            shape = dict(pair.split("=") for pair in row["shape"].split())
            tokens = f"{int(shape['tokens']):,}" + (", causal" if shape.get("causal") == "1" else "")
            memory = f"{_megabytes(row)} of {_megabytes(base)} MB"
            time = f"{float(row['median_ms']):,.1f} of {float(base['median_ms']):,.1f} ms"
            cells = (
                f"`{row['operator']}`",
                row["impl"],
                row["baseline"],
                tokens,
                row["pass"],
                time,
                row["ratio_to_baseline"],
                memory,
            )
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return f"There are no measurements on {device} yet."
    columns = ("operator", "by", "against", "tokens", "pass", "median time", "ratio", "peak memory")
    head = f"| {' | '.join(columns)} |\n|---|---|---|--:|---|--:|--:|--:|"
    return "\n".join([f"Measured with {'; '.join(machines)}.\n", head, *lines])


def long_context() -> str:
    """The table of what it takes to observe and edit a model at long context."""
    path = Path(__file__).parents[1] / "core-kernels/benchmarks/results/long_context.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    head = "| | tokens | peak memory | processor time |\n|---|--:|--:|--:|"
    lines = []
    for row in rows:
        tokens = f"{int(row['tokens']):,}"
        if row["status"] != "ok":
            lines.append(f"| {row['way']} | {tokens} | {row['status']} | |")
            continue
        lines.append(f"| {row['way']} | {tokens} | {_megabytes(row)} MB | {row['seconds']} s |")
    machine = f"Measured with {rows[0]['device']}, torch {rows[0]['torch']}."
    return "\n".join([head, *lines, f"\n{machine}"])


def drawing_speed() -> str:
    """The table of how many scenes a second are drawn."""
    path = Path(__file__).parents[1] / "shared-eval/benchmarks/results/scenes.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    rates: dict[str, list[str]] = {}
    for row in rows:
        rates.setdefault(row["family"], []).append(f"{int(row['scenes_per_second']):,}")
    head = f"| family | {' | '.join(f'{size} pixels' for size in sizes)} |\n|---|{'--:|' * len(sizes)}"
    lines = [f"| `{family}` | {' | '.join(values)} |" for family, values in rates.items()]
    machine = f"Measured on one thread of {rows[0]['device']}, Pillow {rows[0]['pillow']}, NumPy {rows[0]['numpy']}."
    return "\n".join([head, *lines, f"\n{machine}"])


def _megabytes(row: dict[str, str]) -> str:
    return f"{int(row['peak_bytes']) / 1e6:,.1f}"


MAKERS: dict[str, Callable[[], str]] = {
    "benchmarks on cpu": lambda: benchmarks("cpu"),
    "benchmarks on cuda": lambda: benchmarks("cuda"),
    "capability table": capability_table,
    "exit codes": exit_codes,
    "ledger example": ledger_example,
    "ledger keys": lambda: keys(ledger.Ledger),
    "report keys": lambda: keys(Report),
    "report schema": report_schema,
    "long context": long_context,
    "shapesworld gallery": gallery,
    "shapesworld speed": drawing_speed,
    "options of claims reproduce": lambda: option_help(claims_commands.main, "reproduce"),
    "options of claims pages": lambda: option_help(claims_commands.main, "pages"),
    "options of claims summary": lambda: option_help(claims_commands.main, "summary"),
    "options of models train": lambda: option_help(models_commands.main, "train"),
    "options of models check": lambda: option_help(models_commands.main, "check"),
    "options of models list": lambda: option_help(models_commands.main, "list"),
}
