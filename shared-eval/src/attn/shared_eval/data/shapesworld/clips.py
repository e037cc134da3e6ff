"""Videos: shapes in uniform motion, and the clean rendering that fits a frame best."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from attn.shared_eval.data.shapesworld.renderer import render
from attn.shared_eval.data.shapesworld.scene import Scene


def clip(scene: Scene, frames: int, speed: tuple[float, float], *, frame_noise: int = 0) -> tuple[Scene, ...]:
    """The scene at each time: every object moves uniformly in a direction of its own and bounces off the edges.

    Args:
        scene: the first frame (but for the noise).
        frames: how many.
        speed: least and largest distance per frame, in units of the picture's side.
        frame_noise: amplitude in grey levels of noise on the background that is independent from frame to frame; only
            for plain and gradient backgrounds without strokes, which depend on no seed themselves.

    Raises:
        ValueError: if frames is not positive, speed is no range within [0, 1], or noise is asked for on another
            background.
    """
    if frames < 1:
        raise ValueError(f"frames must be positive, got {frames}")
    if not 0 <= speed[0] <= speed[1] <= 1:
        raise ValueError(f"speed must be two numbers 0 <= low <= high <= 1, got {speed}")
    background = scene.background
    if frame_noise and (background.kind not in ("plain", "gradient") or background.strokes):
        raise ValueError(f"frame_noise must be 0 unless the background is plain or gradient, got {frame_noise}")
    draw = scene.draw("clip")
    velocities = []
    for _ in scene.objects:
        length = 2.0
        while not 0.1 < length <= 1:  # a direction, without trigonometry
            u, v = 2 * draw.random() - 1, 2 * draw.random() - 1
            length = (u * u + v * v) ** 0.5
        distance = speed[0] + (speed[1] - speed[0]) * draw.random()
        velocities.append((distance * u / length, distance * v / length))
    made = []
    for time in range(frames):
        objects = tuple(
            replace(shape, x=_bounced(shape.x + u * time, shape.r), y=_bounced(shape.y + v * time, shape.r))
            for shape, (u, v) in zip(scene.objects, velocities, strict=True)
        )
        behind = background
        if frame_noise:
            seed = scene.draw("clip noise", time).integer(2**64)
            # The direction of a gradient is the seed's remainder by 8.
            behind = replace(background, noise=frame_noise, seed=seed - seed % 8 + background.seed % 8)
        made.append(replace(scene, objects=objects, background=behind))
    return tuple(made)


def _bounced(place: float, r: float) -> float:
    """A coordinate reflected at r and 1 - r as often as it takes."""
    room = 1 - 2 * r
    if room <= 0:
        return 0.5
    distance = (place - r) % (2 * room)
    return r + min(distance, 2 * room - distance)


class Fit(NamedTuple):
    """The best-fitting clean rendering of each frame.

    Attributes:
        places: centers of the object, in units of the picture's side: float64 ``[frames, 2]``, x and y.
        psnr: peak signal-to-noise ratio to the frame in dB, peak 255, infinite where equal: float64 ``[frames]``.
        images: the renderings: uint8 ``[frames, size, size, 3]``.
    """

    places: np.ndarray
    psnr: np.ndarray
    images: np.ndarray


def fit(frames: np.ndarray, scene: Scene, *, index: int = 0, step: float = 0.5) -> Fit:
    """Where an object is in each frame: the clean rendering of least squared error over a grid of places.

    Every place of the grid is tried where the object lies within the picture, so this suits small pictures:
    about 4,000 renderings at 32 pixels.

    Args:
        frames: ``[frames, size, size, 3]`` in 0 .. 255, of any real type.
        scene: what is drawn, without the place of the object.
        index: of the object.
        step: of the grid, in pixels.

    Raises:
        ValueError: if the shape of frames is not that, index is no object's, or step is not positive.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[1] != frames.shape[2] or not len(frames):
        raise ValueError(f"frames must have the shape [frames, size, size, 3], got {list(frames.shape)}")
    if not 0 <= index < len(scene.objects):
        raise ValueError(f"index must lie in 0 .. {len(scene.objects) - 1}, got {index}")
    if step <= 0:
        raise ValueError(f"step must be positive, got {step}")
    size, r = frames.shape[1], scene.objects[index].r
    observed = frames.reshape(len(frames), -1).astype(np.float64)
    count = int((1 - 2 * r) * size / step) + 1
    start = 0.5 - (count - 1) * step / size / 2  # the grid is centered in the picture
    grid = [min(start + i * step / size, 1 - r) for i in range(count)]
    best = np.full(len(frames), np.inf)
    places = np.zeros((len(frames), 2))
    images = np.zeros(frames.shape, dtype=np.uint8)
    for y in grid:
        for x in grid:
            image = render(scene.move(index, x, y), size).image
            error = ((observed - image.ravel()) ** 2).mean(1)
            better = error < best
            best[better], places[better], images[better] = error[better], (x, y), image
    with np.errstate(divide="ignore"):
        return Fit(places, 10 * np.log10(255**2 / best), images)
