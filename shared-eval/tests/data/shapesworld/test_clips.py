"""Videos: uniform motion between bounces, and a fit that finds the places again."""

import numpy as np
import pytest

from attn.shared_eval.data.shapesworld import Background, Scene, Shape, clip, family, fit, render

WORLD = family("basic", objects=(1, 2), sizes=("medium",), patterns=("plain",), backgrounds=("plain", "gradient"))


def test_objects_move_uniformly_and_stay_inside():
    bounces = 0
    for i in range(20):
        scenes = clip(WORLD.scene("train", i), 32, (0.03, 0.05))
        assert scenes[0] == WORLD.scene("train", i)
        for k, first in enumerate(scenes[0].objects):
            path = np.array([(s.objects[k].x, s.objects[k].y) for s in scenes])
            assert path.min() >= first.r - 1 / 4096
            assert path.max() <= 1 - first.r + 1 / 4096
            steps = np.abs(np.diff(path, axis=0))
            usual = np.median(steps, axis=0)
            assert 0.03 - 0.001 <= np.linalg.norm(usual) <= 0.05 + 0.001
            # A step along an axis is the usual one, or shorter where the object turns around within it.
            assert (steps - usual).max() < 3 / 4096
            turns = (steps < usual - 3 / 4096).sum(0)
            assert turns.max() <= 5
            bounces += turns.sum()
    assert bounces > 10


def test_bounces_against_a_walk_in_tiny_steps():
    shape = Shape("circle", "red", "medium", 0.3, 0.5, 0.125)
    scenes = clip(Scene((shape,)), 40, (0.07, 0.07))
    first, second = scenes[0].objects[0], scenes[1].objects[0]
    x, u = first.x, second.x - first.x  # no bounce in the first step from here
    for scene in scenes:
        assert abs(scene.objects[0].x - x) < 40 / 4096
        for _ in range(1000):
            x += u / 1000
            if not shape.r <= x <= 1 - shape.r:
                u = -u
                x += 2 * u / 1000


def test_noise_is_independent_from_frame_to_frame_and_leaves_the_rest():
    scene = Scene((Shape("circle", "red", "medium", 0.3, 0.5, 0.125),), Background("gradient", seed=5))
    noisy = clip(scene, 3, (0, 0), frame_noise=30)
    clean = [render(s, 32).image.astype(int) for s in clip(scene, 3, (0, 0))]
    noise = [(render(s, 32).image - c)[..., 0].ravel() for s, c in zip(noisy, clean, strict=True)]
    assert all(n.std() > 3 for n in noise)
    assert abs(np.corrcoef(noise)[np.triu_indices(3, 1)]).max() < 0.5
    assert [s.objects for s in noisy] == [s.objects for s in clip(scene, 3, (0, 0))]
    np.testing.assert_array_equal(clean[0], clean[2])


def test_the_fit_finds_the_places_within_half_a_step():
    scene = WORLD.scene("train", 1)
    scene = Scene(scene.objects[:1], scene.background)
    scenes = clip(scene, 4, (0.05, 0.09))
    frames = np.stack([render(s, 16).image for s in scenes])
    found = fit(frames, scene)
    true = np.array([(s.objects[0].x, s.objects[0].y) for s in scenes])
    assert np.abs(found.places - true).max() * 16 <= 0.3
    for frame, image, psnr in zip(frames, found.images, found.psnr, strict=True):
        expected = 10 * np.log10(255**2 / np.mean((frame.astype(float) - image) ** 2))
        assert psnr == pytest.approx(expected)
    assert found.psnr.min() > 25
    # Another color cannot fit.
    other = scene.change(0, color=next(c for c in ("red", "blue") if c != scene.objects[0].color))
    assert fit(frames, other).psnr.max() < found.psnr.min()


def test_a_rendering_on_the_grid_is_found_exactly():
    scene = Scene((Shape("star", "red", "medium", 0.5, 0.5, 0.125),))
    found = fit(render(scene, 16).image[None], scene)
    assert found.psnr[0] == np.inf
    np.testing.assert_array_equal(found.places, [[0.5, 0.5]])
    clearly = render(scene, 16).image[None].astype(np.float32) + 10
    assert fit(clearly, scene).psnr[0] == pytest.approx(10 * np.log10(255**2 / 100))


def test_bad_arguments():
    scene = WORLD.scene("train", 0)
    with pytest.raises(ValueError, match="frames must be positive, got 0"):
        clip(scene, 0, (0, 1))
    with pytest.raises(ValueError, match=r"speed must be two numbers 0 <= low <= high <= 1, got \(0.2, 0.1\)"):
        clip(scene, 2, (0.2, 0.1))
    with pytest.raises(ValueError, match="frame_noise must be 0 unless the background is plain or gradient, got 3"):
        clip(Scene((), Background("confetti")), 2, (0, 0), frame_noise=3)
    frames = np.zeros((1, 16, 16, 3))
    with pytest.raises(ValueError, match=r"frames must have the shape \[frames, size, size, 3\], got \[16, 16, 3\]"):
        fit(frames[0], scene)
    with pytest.raises(ValueError, match=r"index must lie in 0 .. 0, got 3"):
        fit(frames, Scene(scene.objects[:1]), index=3)
    with pytest.raises(ValueError, match="step must be positive, got 0"):
        fit(frames, scene, step=0)
