"""Outlines of the kinds of shapes as integer tables, without a trigonometric function of floating point."""

from functools import lru_cache
from math import isqrt

import numpy as np

from attn.shared_eval.data.shapesworld.scene import GRAIN, TURN

Points = list[tuple[int, int]]
_ONE = 1 << 40


def _circle_table() -> Points:
    """The points of the unit circle at every step of an angle, in 1 / 2**40, by halving angles and multiplying."""
    cosine, sine = 0, _ONE  # a quarter turn
    for _ in range((TURN // 4).bit_length() - 1):
        cosine, sine = isqrt((_ONE + cosine) * _ONE // 2), isqrt((_ONE - cosine) * _ONE // 2)
    points = [(_ONE, 0)]
    for _ in range(TURN - 1):
        x, y = points[-1]
        points.append(((x * cosine - y * sine) >> 40, (x * sine + y * cosine) >> 40))
    return points


_CIRCLE = _circle_table()


def _arc(start: int, stop: int, step: int = 1, *, radius: int = GRAIN, center: tuple[int, int] = (0, 0)) -> Points:
    """Points of a circle; y grows downward, angle 0 points right and angles grow clockwise."""
    turned = (_CIRCLE[angle % TURN] for angle in range(start, stop, step))
    return [(center[0] + (x * radius >> 40), center[1] + (y * radius >> 40)) for x, y in turned]


def _star() -> Points:
    # 128 steps do not divide by five, but the points are at multiples of 12.8 = 64 / 5: take the nearest step.
    angles = [-32 + (64 * i + 2) // 5 for i in range(10)]
    return [_arc(angle, angle + 1, radius=GRAIN if i % 2 == 0 else 1720)[0] for i, angle in enumerate(angles)]


def _heart() -> Points:
    lobes = _arc(56, 117, 3, radius=2100, center=(-1750, -1150)) + _arc(-52, 9, 3, radius=2100, center=(1750, -1150))
    return [*lobes, (0, 3900)]


# The hole of a ring is a second outline.
_OUTLINES: dict[str, tuple[Points, ...]] = {
    "circle": (_arc(0, TURN, 2),),
    "square": ([(-2896, -2896), (2896, -2896), (2896, 2896), (-2896, 2896)],),
    "triangle": ([(0, -4096), (3547, 2048), (-3547, 2048)],),
    "cross": (
        [
            *[(-1250, -3850), (1250, -3850), (1250, -1250), (3850, -1250), (3850, 1250), (1250, 1250)],
            *[(1250, 3850), (-1250, 3850), (-1250, 1250), (-3850, 1250), (-3850, -1250), (-1250, -1250)],
        ],
    ),
    "star": (_star(),),
    "diamond": ([(0, -4096), (2600, 0), (0, 4096), (-2600, 0)],),
    "ring": (_arc(0, TURN, 2), _arc(0, TURN, 2, radius=2150)),
    "heart": (_heart(),),
    "ellipse": ([(x, y * 9 // 16) for x, y in _arc(0, TURN, 2)],),
    "hexagon": ([(-4096, 0), (-2048, -3547), (2048, -3547), (4096, 0), (2048, 3547), (-2048, 3547)],),
    "moon": (_arc(19, 110, 2) + _arc(95, 32, -2, radius=3200, center=(2000, 0)),),
    "arrow": ([(4096, 0), (700, 2900), (700, 1150), (-3700, 1150), (-3700, -1150), (700, -1150), (700, -2900)],),
}


@lru_cache(maxsize=len(_OUTLINES) * TURN)
def outline(kind: str, angle: int) -> tuple[np.ndarray, ...]:
    """Closed outlines of a kind, turned clockwise: int64 ``[points, 2]`` each, in 1 / 4096 of its radius.

    The second outline, where there is one, is a hole.
    """
    cosine, sine = _CIRCLE[angle % TURN]
    return tuple(
        np.array([((x * cosine - y * sine) >> 40, (x * sine + y * cosine) >> 40) for x, y in points])
        for points in _OUTLINES[kind]
    )
