"""Noun phrases: how a shape is named, which shapes a name fits, and what is left of what."""

from dataclasses import dataclass

from attn.shared_eval.data.shapesworld.grammar import NUMBERS, plural
from attn.shared_eval.data.shapesworld.scene import Scene, Shape

ATTRIBUTES = ("size", "pattern", "color", "kind")
"""What a noun phrase can say, in the order of its words."""

MARGIN = 0.1
"""Least difference of two coordinates, in units of the picture's side, that a spatial word may rest on."""

RELATIONS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
"""Relations of two shapes as directions: x grows to the right and y downward."""


@dataclass(frozen=True, slots=True)
class Description:
    """Some attributes of a shape: what a phrase such as ``small red star`` says.

    Args:
        kind, color, size, pattern: None where the phrase is silent.
    """

    kind: str | None = None
    color: str | None = None
    size: str | None = None
    pattern: str | None = None

    def fits(self, shape: Shape) -> bool:
        """Whether everything that it says is true of the shape."""
        return all(value in (None, getattr(shape, name)) for name, value in self._said())

    def matches(self, scene: Scene) -> tuple[int, ...]:
        """Indices of the objects that it fits."""
        return tuple(i for i, shape in enumerate(scene.objects) if self.fits(shape))

    def admits(self, scene: Scene) -> tuple[int, ...]:
        """Indices of the objects that a partial reading would admit: at least one of its words is true of them."""
        return tuple(
            i
            for i, shape in enumerate(scene.objects)
            if any(value == getattr(shape, name) for name, value in self._said() if value is not None)
        )

    def words(self, *, many: bool = False) -> str:
        """The phrase without an article; a missing kind is an ``object``."""
        kind = self.kind or "object"
        return " ".join([*self.attributes(), plural(kind) if many else kind])

    def attributes(self) -> list[str]:
        """The words besides the kind."""
        return [word for word in (self.size, self.pattern, self.color) if word]

    def _said(self) -> list[tuple[str, str | None]]:
        return [(name, getattr(self, name)) for name in ATTRIBUTES]


def describe(shape: Shape, *names: str) -> Description:
    """What a phrase with some attributes says of a shape."""
    return Description(**{name: getattr(shape, name) for name in names})


def unique_description(scene: Scene, index: int, *, without: str | None = None) -> Description | None:
    """The shortest description that fits one object only, or None.

    Args:
        scene: where it must be the only one.
        index: of the object.
        without: an attribute that must not be named, because it is asked for. Colors are never named in a grey scene.
    """
    shape = scene.objects[index]
    hidden = {without} | (set() if scene.has_color else {"color"})
    for names in (("kind",), ("color",), ("color", "kind"), ("size", "kind"), ("pattern", "kind"), ("size", "color")):
        if hidden.isdisjoint(names) and ("kind" in names or without == "kind"):
            description = describe(shape, *names)
            if description.matches(scene) == (index,):
                return description
    return None


def name(scene: Scene, index: int) -> Description:
    """Color and kind of an object, or its kind in a grey scene."""
    return describe(scene.objects[index], *(("color", "kind") if scene.has_color else ("kind",)))


def holds(relation: str, first: Shape, second: Shape) -> bool | None:
    """Whether a relation of `RELATIONS` clearly holds between two shapes; None where the margin is too small."""
    across, down = RELATIONS[relation]
    distance = across * (first.x - second.x) + down * (first.y - second.y)
    return None if abs(distance) < MARGIN else distance > 0


def number_word(count: int) -> str:
    """The count in words, up to ten."""
    return NUMBERS[count]
