"""The ledger, ``claims.toml``: a paper's identity, its claims, and what was measured.

```toml
[paper]
title = "..."
authors = ["..."]
venue = "ICLR"
year = 2024
arxiv = "2402.04347"
code = "https://..."                 # the official code, and its licence
code_licence = "Apache-2.0"
summary = "One sentence."

[[claim]]
id = "mimicry"
statement = "One sentence that can be false."
source = "figure 4"                  # where the paper shows it
published = { text = "KL 0.2 against 1.1", verified = false }

[claim.mini]
experiment = "mimicry"               # a function of attn.<paper>.experiments
metric = "KL divergence in nats per row"
expect = ["hedgehog <= 0.5 * t2r"]   # all must hold
control = ["shuffled >= t2r"]        # hold exactly when the negative control does not show the effect
seeds = 3                            # 0, 1, 2; or a list
judge = "every seed"                 # or "interval"
show = ["hedgehog", "t2r"]           # the figures that the tables print
verdict = "holds"                    # recorded: what the tables say and what a run is compared with

[claim.mini.tolerance]               # only where the default does not serve
hedgehog = 0.05

[claim.mini.pins]                    # written by --repin, as is measured
hedgehog = { mean = 0.47, low = 0.44, high = 0.5, tolerance = 0.03 }

[claim.mini.measured]
date = 2026-11-24
hardware = "..."
seconds = 12.5                       # of all seeds together
peak_memory_mib = 410.0              # of the largest process
versions = { python = "3.12.1", torch = "2.11.0" }
data = { "docs corpus" = "sha256 ..." }

[claim.paper]
checkpoint = "gpt2"
data = "WikiText-103, raw"
split = "test"
metric = "perplexity per token"
targets = [{ figure = "hedgehog", value = 16.7, tolerance = 0.4, source = "table 10", verified = false }]
hardware = "one GPU with 24 GB"
time = "8 hours"
needs = "wikitext-103-raw/ below the data root: ..."
```
"""

import datetime
import tomllib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from attn.shared_eval.claims.expectation import Inequality, parse
from attn.shared_eval.claims.experiment import Tier

__all__ = [
    "Claim",
    "Judge",
    "Ledger",
    "LedgerError",
    "Measured",
    "MiniTier",
    "Paper",
    "PaperTier",
    "Pin",
    "Published",
    "Target",
    "Verdict",
    "load",
]

Verdict = Literal["holds", "drifted", "fails", "not run"]
Judge = Literal["every seed", "interval"]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
FigureName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Expectation = Annotated[str, AfterValidator(lambda text: parse(text).text)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LedgerError(Exception):
    """A ledger that cannot be used; each line of the message names file, claim and key."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Paper(_Table):
    """Who and what."""

    title: Text
    authors: Annotated[list[Text], Field(min_length=1)]
    venue: Text
    year: int
    summary: Text
    """What the paper shows, in one sentence."""
    arxiv: Text | None = None
    code: Text | None = None
    """Address of the official code; absent if there is none."""
    code_licence: Text | None = None


class Published(_Table):
    """The paper's own figure."""

    text: Text
    """In words, with its unit."""
    verified: bool
    """Whether it was read in the paper itself; the tables mark figures that were not."""


class Pin(_Table):
    """The measured value of a figure."""

    mean: Number
    low: Number | None = None
    """Lower end of the 95 % interval of the mean; absent with one seed."""
    high: Number | None = None
    tolerance: Tolerance
    """How far the mean of another run may lie from `mean` before the claim has drifted."""


class Measured(_Table):
    """How the pins were measured."""

    date: datetime.date
    hardware: Text
    seconds: Tolerance
    """Time of all seeds, added up."""
    peak_memory_mib: Tolerance
    """Peak resident memory of the largest process (on a GPU: peak allocated device memory), in MiB."""
    versions: dict[Text, Text]
    data: dict[Text, Text] = Field(default_factory=dict)
    """Fingerprints of data that could change with the environment."""


class Target(_Table):
    """A figure of the paper that the paper tier must reach."""

    figure: FigureName
    value: Number
    tolerance: Tolerance
    source: Text
    """Table or figure of the paper."""
    verified: bool
    """Whether the value was read in the paper itself."""


class _Measurable(_Table):
    metric: Text
    seeds: int | list[int] = 1
    """A number n, for seeds 0 to n - 1, or a list of seeds; the same for all claims of an experiment."""
    verdict: Verdict = "not run"
    """The recorded verdict."""
    note: Text | None = None
    """What was tried; required where the recorded verdict is "fails"."""
    tolerance: dict[FigureName, Tolerance] = Field(default_factory=dict)
    """Tolerances for --repin to use in place of max(half the interval, 2 % of the mean)."""
    pins: dict[FigureName, Pin] = Field(default_factory=dict)
    measured: Measured | None = None

    @field_validator("seeds", mode="before")
    @classmethod
    def _usable(cls, seeds: object) -> object:
        numbers = seeds if isinstance(seeds, list) else [seeds]
        whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
        if not numbers or not whole or len(set(numbers)) < len(numbers) or seeds == 0:
            raise ValueError(f"must be a positive number, or a list of different numbers of at least 0, got {seeds!r}")
        return seeds

    @property
    def seed_list(self) -> list[int]:
        """The seeds, spelt out."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


class MiniTier(_Measurable):
    """A claim's experiment at a scale of seconds on a CPU."""

    experiment: FigureName
    expect: Annotated[list[Expectation], Field(min_length=1)]
    """Inequalities over figures; all must hold."""
    control: Annotated[list[Expectation], Field(min_length=1)]
    """Inequalities that hold exactly when the negative control does not show the effect."""
    judge: Judge
    """Whether an inequality must hold on every seed, or the lower end of the 95 % interval of its mean margin must."""
    show: Annotated[list[FigureName], Field(min_length=1)]
    """The figures that the tables print, in order."""

    @cached_property
    def inequalities(self) -> list[tuple[str, Inequality]]:
        """Every inequality, with its key in the ledger ("expect[0]")."""
        return [
            (f"{kind}[{index}]", parse(text))
            for kind, texts in (("expect", self.expect), ("control", self.control))
            for index, text in enumerate(texts)
        ]

    @property
    def figures(self) -> list[str]:
        """The figures that are shown or judged, those shown first."""
        judged = [name for _, inequality in self.inequalities for name in inequality.figures]
        return list(dict.fromkeys([*self.show, *judged]))


class PaperTier(_Measurable):
    """A claim's experiment with the paper's own checkpoint and data."""

    experiment: FigureName | None = None
    """Absent while none is written."""
    checkpoint: Text
    data: Text
    split: Text
    targets: Annotated[list[Target], Field(min_length=1)]
    hardware: Text
    time: Text
    needs: Text
    """What to get and where to put it."""

    @cached_property
    def inequalities(self) -> list[tuple[str, Inequality]]:
        """One inequality per target, with its key in the ledger ("targets[0]")."""
        return [
            (f"targets[{index}]", parse(f"abs({target.figure} - {target.value!r}) <= {target.tolerance!r}"))
            for index, target in enumerate(self.targets)
        ]

    @property
    def show(self) -> list[str]:
        """The figures that the tables print: those with a target."""
        return list(dict.fromkeys(target.figure for target in self.targets))

    figures = show


class Claim(_Table):
    """One claim of the paper."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    statement: Text
    """One sentence that can be false."""
    source: Text
    """Where the paper shows it."""
    published: Published
    mini: MiniTier | None = None
    paper: PaperTier | None = None

    def tier(self, tier: Tier) -> MiniTier | PaperTier | None:
        """The claim's section for a tier, if it has one."""
        return self.mini if tier == "mini" else self.paper


class Ledger(_Table):
    """A paper's ledger."""

    paper: Paper
    claim: Annotated[list[Claim], Field(min_length=1)]

    def choose(self, ids: list[str] | None) -> list[Claim]:
        """The claims of those ids, in the ledger's order; all of them for None.

        Raises:
            LedgerError: if there is no such claim.
        """
        known = [claim.id for claim in self.claim]
        for wanted in ids or []:
            if wanted not in known:
                raise LedgerError(f"no claim {wanted!r}; the claims are: {', '.join(known)}")
        return [claim for claim in self.claim if ids is None or claim.id in ids]


def load(path: Path, *, need_pins: bool = True) -> Ledger:
    """Read and check a ledger.

    Args:
        path: the file.
        need_pins: whether every figure must be pinned; not where pins are to be rewritten.

    Raises:
        LedgerError: if the file is missing or wrong, with a line for everything that is wrong.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LedgerError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LedgerError(f"{path}: {error}") from None
    try:
        ledger = Ledger.model_validate(raw)
    except ValidationError as error:
        lines = [f"{path}: {_place(raw, item['loc'])}: {_explanation(item)}" for item in error.errors()]
        raise LedgerError("\n".join(dict.fromkeys(lines))) from None
    problems = [
        f'{path}: claim "{claim.id}": {key}: {text}'
        for claim in ledger.claim
        for key, text in _problems(claim, need_pins)
    ]
    ids = [claim.id for claim in ledger.claim]
    problems += [f"{path}: {text}" for text in _unlike_seeds(ledger)]
    problems += [f'{path}: claim "{name}": id: must be unique' for name in dict.fromkeys(ids) if ids.count(name) > 1]
    if problems:
        raise LedgerError("\n".join(problems))
    return ledger


def _problems(claim: Claim, need_pins: bool) -> Iterator[tuple[str, str]]:
    """What a schema cannot say: pairs of key and explanation."""
    if claim.mini is None and claim.paper is None:
        yield "mini", "missing: a claim needs a section mini or paper"
    if claim.mini is not None and len(claim.mini.seed_list) < 2:
        yield "mini.seeds", f"must be at least two seeds, got {claim.mini.seeds}"
    for name, tier in (("mini", claim.mini), ("paper", claim.paper)):
        if tier is None:
            continue
        if tier.verdict == "fails" and tier.note is None:
            yield f"{name}.note", 'missing: the recorded verdict "fails" needs a note of what was tried'
        for figure in tier.tolerance:
            if figure not in tier.figures:
                yield f"{name}.tolerance.{figure}", f"must be a figure that is pinned: {', '.join(tier.figures)}"
        if need_pins:
            yield from _unpinned(name, tier)


def _unlike_seeds(ledger: Ledger) -> Iterator[str]:
    """Claims that share an experiment share its seeds, so that its plots do not depend on which claims are run."""
    first: dict[tuple[str, str], tuple[str, list[int]]] = {}
    for claim in ledger.claim:
        for name, tier in (("mini", claim.mini), ("paper", claim.paper)):
            if tier is not None and tier.experiment is not None:
                other, seeds = first.setdefault((name, tier.experiment), (claim.id, tier.seed_list))
                if tier.seed_list != seeds:
                    says = f'must be those of claim "{other}", which shares its experiment'
                    yield f'claim "{claim.id}": {name}.seeds: {says}'


def _unpinned(name: str, tier: MiniTier | PaperTier) -> Iterator[tuple[str, str]]:
    if tier.verdict == "not run":
        return
    if tier.measured is None:
        yield f"{name}.measured", f'missing: the recorded verdict is "{tier.verdict}"'
    users = {figure: f"show[{index}]" for index, figure in reversed(list(enumerate(tier.show)))}
    for key, inequality in tier.inequalities:
        users |= {figure: key for figure in inequality.figures if figure not in users}
    for figure, key in users.items():
        if figure not in tier.pins:
            pinned = ", ".join(tier.pins) or "none"
            yield f"{name}.pins.{figure}", f"missing pin, needed by {name}.{key} (pinned: {pinned})"


def _place(raw: Mapping[str, Any], location: tuple[int | str, ...]) -> str:
    """The claim and key of a location of pydantic's; steps that are no key of the file are left out."""
    steps, prefix = list(location), ""
    if len(steps) >= 2 and steps[0] == "claim" and isinstance(steps[1], int):
        entry = raw["claim"][steps[1]]
        name = entry.get("id") if isinstance(entry, dict) else None
        prefix = f'claim "{name}"' if isinstance(name, str) else f"claim number {steps[1] + 1}"
        steps = steps[2:]
    key = ""
    for step in steps:
        if isinstance(step, int):
            key += f"[{step}]"
        elif step.isidentifier() or "-" in step:
            key += f".{step}" if key else step
    return ": ".join(part for part in (prefix, key) if part) or "file"


def _explanation(item: Mapping[str, Any]) -> str:
    """Pydantic's message in a ledger's words."""
    if item["type"] == "extra_forbidden":
        return "unknown key"
    if item["type"] == "missing":
        return "missing"
    if item["type"] == "value_error":  # one of ours
        return item["msg"].removeprefix("Value error, ")
    message, got = item["msg"], repr(item["input"])
    return f"{message[0].lower()}{message[1:]}" + (f", got {got}" if len(got) <= 80 else "")
