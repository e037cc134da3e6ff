"""``mini-cnn``: an EfficientNet that names what is in a scene, to judge and to describe pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multilabel_average_precision

from attn.shared_eval.data.shapesworld import Scene, family, render
from attn.shared_eval.data.shapesworld.grammar import COLORS, KINDS, PATTERNS, STYLES
from attn.shared_eval.models.gates import Gate
from attn.shared_eval.models.recipe import Recipe

SIZE = 64
COUNTS = ("one object", "two objects", "three objects", "four objects", "five objects")
ATTRIBUTES = (*KINDS, *COLORS, *PATTERNS, *STYLES, *COUNTS)
PAIRS = tuple((color, kind) for color in COLORS for kind in KINDS)
LABELS = (*ATTRIBUTES, *(f"{color} {kind}" for color, kind in PAIRS))
"""Names of the outputs: attributes that some object of the picture has, or the picture; then every colored kind."""

WORLD = family("basic", style_share=0.4)
UNKNOWN = -1  # the label of colors in a grey picture
BLURS = (0.0, 1.0, 2.0, 3.0)  # standard deviations in pixels
CUT = 16  # pixels along a side
NOTES = (
    "Outputs for all 120 pairs of color and kind, not for 12 common ones: a caption's objects are to be judged with "
    "their bindings. No clutter: the kinds of its shapes cannot be told at 64 pixels. transformers hands "
    "batch_norm_momentum to torch, where it is the weight of the new batch; so it is 0.02 here, not the default 0.99."
)


@dataclass(frozen=True, kw_only=True)
class MiniCnn(Recipe):
    """EfficientNetForImageClassification of many labels on scenes of 64 px, clean and lightly corrupted.

    Input is ``pixels(images)``. Of the pictures a quarter is blurred, a quarter noisy and a tenth has a hole, so that
    the model can judge imperfect ones.

    Args:
        width_coefficient, depth_coefficient: of the EfficientNet; the width in eighths.
    """

    name: str = "mini-cnn"
    package: str = "attn.shared_eval.models"
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 3e-3
    width_coefficient: float = 0.25
    depth_coefficient: float = 0.35
    notes: str = NOTES

    def build(self) -> nn.Module:
        """An EfficientNet with an output for each of `LABELS`."""
        from transformers import EfficientNetConfig, EfficientNetForImageClassification

        return EfficientNetForImageClassification(
            EfficientNetConfig(
                image_size=SIZE,
                width_coefficient=self.width_coefficient,
                depth_coefficient=self.depth_coefficient,
                hidden_dim=round(1280 * self.width_coefficient),
                batch_norm_momentum=0.02,
                dropout_rate=0.0,
                problem_type="multi_label_classification",
                id2label=dict(enumerate(LABELS)),
                label2id={label: index for index, label in enumerate(LABELS)},
            )
        )

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Pictures by index, ``pixel_values`` float32 ``[batch, 3, 64, 64]``, and ``labels`` ``[batch, labels]``."""
        scenes = [WORLD.scene("train", index, seed=self.seed) for index in indices]
        images = torch.stack(
            [_corrupted(image, self.seed, index) for image, index in zip(_rendered(scenes), indices, strict=True)]
        )
        return {"pixel_values": images, "labels": torch.stack([labels(scene) for scene in scenes])}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Binary cross-entropy: the mean over the attributes plus the mean over the pairs, which are rare."""
        logits = model(pixel_values=batch["pixel_values"]).logits
        known = batch["labels"] != UNKNOWN
        losses = F.binary_cross_entropy_with_logits(logits, batch["labels"].clamp(min=0).float(), reduction="none")
        parts = zip(*(x.split([len(ATTRIBUTES), len(PAIRS)], dim=1) for x in (losses, known)), strict=True)
        return torch.stack([loss[valid].sum() / valid.sum().clamp(min=1) for loss, valid in parts]).sum()

    def gates(self) -> list[Gate]:
        """Attributes are named, kinds go with their colors, and what is blurred is less certain."""
        return [
            Gate(name="mean average precision of attributes", measure=self.average_precision, low=0.95, samples=2000),
            Gate(name="kind given color", measure=self.kind_given_color, low=0.90, samples=2000),
            Gate(name="least loss of log-probability by more blur", measure=self.loss_by_blur, low=0.0, samples=500),
        ]

    def average_precision(self, model: nn.Module, samples: int) -> float:
        """Average precision on test scenes, the mean over the attributes."""
        logits, wanted = self._test(model, samples)
        attributes = len(ATTRIBUTES)
        precision = multilabel_average_precision(
            logits[:, :attributes], wanted[:, :attributes], attributes, average=None, ignore_index=UNKNOWN
        )
        return precision.nanmean().item()  # NaN is an attribute that no sample has

    def kind_given_color(self, model: nn.Module, samples: int) -> float:
        """Share of colors with one object whose kind is the likeliest of those that have this color."""
        logits, wanted = self._test(model, samples)
        logits, wanted = (x[:, len(ATTRIBUTES) :].unflatten(1, (len(COLORS), len(KINDS))) for x in (logits, wanted))
        single = wanted.eq(1).sum(-1) == 1
        return (logits.argmax(-1) == wanted.argmax(-1))[single].double().mean().item()

    def loss_by_blur(self, model: nn.Module, samples: int) -> float:
        """Least drop of the mean log-probability of true labels from one of the blurs to the next, in nats."""
        images, wanted = self._test_set(samples)
        means = []
        for deviation in BLURS:
            parts = _blurred(images, deviation).split(self.batch_size)
            logs = torch.cat([F.logsigmoid(model(pixel_values=part).logits) for part in parts])
            means.append(logs[wanted == 1].double().mean())
        return min((before - after).item() for before, after in pairwise(means))

    def narrow(self) -> Recipe:
        """An eighth of the width, three steps of four pictures."""
        return replace(self, steps=3, batch_size=4, width_coefficient=0.125, depth_coefficient=0.1)

    def _test(self, model: nn.Module, samples: int) -> tuple[Tensor, Tensor]:
        images, wanted = self._test_set(samples)
        return torch.cat([model(pixel_values=part).logits for part in images.split(self.batch_size)]), wanted

    def _test_set(self, samples: int) -> tuple[Tensor, Tensor]:
        scenes = [WORLD.scene("test", index, seed=self.seed) for index in range(samples)]
        return torch.stack(list(_rendered(scenes))), torch.stack([labels(scene) for scene in scenes])


def pixels(images: Any) -> Tensor:
    """What the model takes: uint8 ``[..., size, size, 3]`` as float32 ``[..., 3, size, size]`` in [-1, 1]."""
    return torch.as_tensor(images).movedim(-1, -3).float() / 127.5 - 1


def labels(scene: Scene) -> Tensor:
    """What is true of a scene, int64 ``[labels]``: 0, 1, or -1 for colors where the picture is grey."""
    shapes = scene.objects
    said = {*(x.kind for x in shapes), *(x.pattern for x in shapes), scene.style, COUNTS[len(shapes) - 1]}
    said |= {x.color for x in shapes} | {f"{x.color} {x.kind}" for x in shapes}
    truth = torch.tensor([label in said for label in LABELS]).long()
    if not scene.has_color:
        truth[_COLORED] = UNKNOWN
    return truth


_COLORED = [index for index, label in enumerate(LABELS) if label.split()[0] in COLORS]


def _rendered(scenes: Sequence[Scene]) -> Iterator[Tensor]:
    return (pixels(render(scene, SIZE).image.copy()) for scene in scenes)


def _corrupted(image: Tensor, seed: int, index: int) -> Tensor:
    """The picture, perhaps blurred, noisy, with a square hole, in ways that its index determines."""
    generator = torch.Generator().manual_seed(seed * 2**40 + index)
    blur, noise, cut, amount, x, y = torch.rand(6, generator=generator).tolist()
    if blur < 0.25:
        image = _blurred(image, 0.5 + 1.5 * amount)
    if noise < 0.25:
        image = image + 0.3 * amount * torch.randn(image.shape, generator=generator)
    if cut < 0.1:
        left, top = (int(place * (SIZE - CUT + 1)) for place in (x, y))
        image = image.clone()
        image[:, top : top + CUT, left : left + CUT] = 0.0
    return image


def _blurred(images: Tensor, deviation: float) -> Tensor:
    """Pictures ``[..., height, width]`` under a Gaussian of this standard deviation in pixels."""
    return torch.from_numpy(gaussian_filter(images.numpy(), deviation, axes=(-2, -1)))
