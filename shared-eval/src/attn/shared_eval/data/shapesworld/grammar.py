"""The words of the scenes: what a shape, a background and a picture can be, and which go together."""

KINDS = (
    *("circle", "square", "triangle", "cross", "star", "diamond"),
    *("ring", "heart", "ellipse", "hexagon", "moon", "arrow"),
)
"""Kinds of shapes. In `cooccur` scenes the first six are the popular ones."""

COLORS = {
    "red": (220, 36, 36),
    "orange": (246, 140, 16),
    "yellow": (250, 228, 40),
    "green": (32, 150, 56),
    "cyan": (60, 214, 228),
    "blue": (36, 64, 214),
    "purple": (128, 44, 172),
    "pink": (250, 144, 196),
    "white": (246, 246, 246),
    "black": (18, 18, 18),
}
"""Colors of shapes, RGB; every shape departs from its color by up to 8 levels a channel."""

RADII = {"small": (0.06, 0.09), "medium": (0.12, 0.15), "large": (0.19, 0.24)}
"""Sizes as ranges of the radius, in units of the picture's side; gaps between them keep the words unambiguous."""

PATTERNS = ("plain", "striped", "dotted", "checked")
STYLES = ("dark", "bright", "pastel", "warm", "cool", "outlined", "textured", "grey")
"""Looks of a whole picture. Nothing names a color in a grey one."""

BACKGROUNDS = ("plain", "gradient", "noisy", "confetti")
TEXTURES = ("brick", "grass", "gravel")
"""Backgrounds cut out of scikit-image's photographs (extra ``text``); drawn on request only."""

SPLITS = ("train", "val", "test", "search", "verifier")
"""Disjoint spaces of seeds; ``search`` is for the search of heads, ``verifier`` for models that judge other models."""

PARTNERS = {KINDS[(i + 6) % 12]: KINDS[i] for i in range(12)}
"""Kinds that occur together in `cooccur` scenes: six pairs, each of a popular and a rarer kind."""

POPULAR = KINDS[:6]

NEAR_KINDS = (("circle", "ellipse"), ("square", "diamond"), ("ring", "circle"))
NEAR_COLORS = (("red", "orange"), ("blue", "cyan"), ("pink", "purple"))

HELD_OUT = (
    *(("circle", "purple"), ("square", "orange"), ("triangle", "cyan"), ("cross", "pink")),
    *(("star", "green"), ("diamond", "red"), ("ring", "yellow"), ("heart", "blue")),
    *(("ellipse", "white"), ("hexagon", "black"), ("moon", "red"), ("arrow", "green")),
)
"""Twelve pairs of kind and color, every kind and every color among them, which ``pairs="seen"`` leaves out."""

FACTS = {
    "with three corners": ("triangle",),
    "with four corners": ("square", "diamond"),
    "with six corners": ("hexagon",),
    "with five points": ("star",),
    "with two corners": ("moon",),
    "with a hole": ("ring",),
    "without corners": ("circle", "ring", "ellipse"),
    "that you see at night": ("star", "moon"),
    "that points the way": ("arrow",),
}
"""What is true of which kinds: the lexical facts of reasoning expressions."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")

DISTRACTORS = (0, 2, 4, 6, 8)
"""Distracting shapes of a scene, by its clutter level."""
NOISE_LEVELS = (0, 8, 16, 28, 40)
"""Amplitude of the background's noise in grey levels, by clutter level."""
STROKES = (0, 4, 10, 20, 40)
"""Strokes on the background, by clutter level."""
HUE_SPREAD = (1, 2, 4, 7, 10)
"""Number of colors that distractors and strokes are drawn from, by clutter level."""


def plural(kind: str) -> str:
    """The kind in the plural."""
    return kind + ("es" if kind == "cross" else "s")


def article(word: str) -> str:
    """``an`` before a vowel, else ``a``."""
    return "an" if word[0] in "aeiou" else "a"
