"""What makes models and detectors err: answers by habit, dropped prompts and pictures, detectors that fail."""

from dataclasses import dataclass

import numpy as np

from attn.shared_eval.data.shapesworld.families import World
from attn.shared_eval.data.shapesworld.grammar import KINDS, POPULAR
from attn.shared_eval.data.shapesworld.questions import Question
from attn.shared_eval.data.shapesworld.renderer import Picture, render
from attn.shared_eval.data.shapesworld.scene import Scene


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def _check_kinds(name: str, kinds: tuple[str, ...]) -> None:
    if not set(kinds) <= set(KINDS):
        raise ValueError(f"{name} must be some of {', '.join(KINDS)}, got {kinds!r}")


@dataclass(frozen=True)
class AnswerPrior:
    """Presence questions answered by the question alone: yes for popular kinds, no for the others.

    Args:
        share: of the presence questions that are answered so, in [0, 1].
        yes: kinds whose presence is asserted.

    Raises:
        ValueError: if share is out of range or a kind is unknown.
    """

    share: float = 0.4
    yes: tuple[str, ...] = POPULAR

    def __post_init__(self) -> None:
        _check_share("share", self.share)
        _check_kinds("yes", self.yes)

    def answer(self, scene: Scene, question: Question) -> str:
        """The answer with the prior's noise; that of a question of another family is the true one."""
        if question.asked is None or scene.draw("answer prior", question.text).random() >= self.share:
            return question.answer
        return "yes" if question.asked in self.yes else "no"


@dataclass(frozen=True)
class PromptDrop:
    """Rows whose prompt is left out.

    Args:
        share: of the rows, in [0, 1].

    Raises:
        ValueError: if share is out of range.
    """

    share: float = 0.15

    def __post_init__(self) -> None:
        _check_share("share", self.share)

    def prompt(self, scene: Scene, text: str) -> str:
        """The text, or the empty text; drawn from the scene and the text."""
        return "" if scene.draw("prompt drop", text).random() < self.share else text


@dataclass(frozen=True, eq=False)
class ImageDrop:
    """Pictures replaced by the mean picture; the texts stay what they are.

    Args:
        share: of the pictures, in [0, 1].
        mean: uint8 ``[size, size, 3]``, see `mean_picture`.

    Raises:
        ValueError: if share is out of range.
    """

    share: float
    mean: np.ndarray

    def __post_init__(self) -> None:
        _check_share("share", self.share)

    def image(self, picture: Picture) -> np.ndarray:
        """The picture's image or the mean picture: uint8 ``[size, size, 3]``.

        Raises:
            ValueError: if the picture has another size than the mean picture.
        """
        if picture.image.shape != self.mean.shape:
            raise ValueError(f"picture must have the size {len(self.mean)} of the mean picture, got {picture.size}")
        return self.mean if picture.scene.draw("image drop").random() < self.share else picture.image


def mean_picture(world: World, split: str, count: int, size: int, *, seed: int = 0) -> np.ndarray:
    """The mean of the first pictures of a split, rounded: uint8 ``[size, size, 3]``.

    Raises:
        ValueError: if count is not positive, or split or size is not one that scenes are drawn for.
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    total = np.zeros((size, size, 3), dtype=np.int64)
    for index in range(count):
        total += render(world.scene(split, index, seed=seed), size).image
    return ((2 * total + count) // (2 * count)).astype(np.uint8)


@dataclass(frozen=True)
class Detector:
    """A detector of kinds that knows the scene and errs at random, the same way whenever it is asked.

    Args:
        miss: probability that a kind that is present is not seen, in [0, 1].
        false: probability that an absent one is, in [0, 1].
        seed: detectors of different seeds err independently.

    Raises:
        ValueError: if a probability is out of range.
    """

    miss: float = 0.0
    false: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_share("miss", self.miss)
        _check_share("false", self.false)

    def sees(self, scene: Scene, kind: str) -> bool:
        """Whether it reports the kind in the scene.

        Raises:
            ValueError: if the kind is unknown.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        chance = scene.draw("detector", self.seed, kind).random()
        present = any(shape.kind == kind for shape in scene.objects)
        return chance >= self.miss if present else chance < self.false
