"""The gallery of ShapesWorld: pictures drawn when the site is built, with what the texts say about them."""

import base64
import html
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from attn.shared_eval.data import shapesworld as sw
from attn.shared_eval.data.shapesworld.grammar import BACKGROUNDS, STYLES, TEXTURES

SIZE = 96


def gallery() -> str:
    """The sections of the page in Markdown, pictures within."""
    sections = {
        "Families": _families(),
        "Clutter": (_scene(sw.family("basic", clutter=n).scene("train", 1), f"level {n}") for n in range(5)),
        "Backgrounds": (
            _scene(sw.family("basic", backgrounds=(kind,)).scene("train", 2), kind) for kind in BACKGROUNDS + TEXTURES
        ),
        "Styles": (
            _scene(sw.family("basic", styles=(style,), style_share=1.0).scene("train", 3), style) for style in STYLES
        ),
        "Captions": _captions(),
        "Questions": _questions(),
        "Referring expressions": _referring(),
        "Edits": _edits(),
        "Videos": _videos(),
    }
    return "\n\n".join(
        f'## {title}\n\n<div class="gallery">\n{chr(10).join(figures)}\n</div>' for title, figures in sections.items()
    )


def _figure(image: np.ndarray, *lines: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    source = base64.b64encode(buffer.getvalue()).decode()
    caption = "<br>".join(html.escape(line) for line in lines)
    height, width = image.shape[:2]
    picture = f'<img src="data:image/png;base64,{source}" alt="{html.escape(lines[0])}" width={width} height={height}>'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _scene(scene: sw.Scene, *lines: str) -> str:
    return _figure(sw.render(scene, SIZE).image, *lines)


def _families() -> Iterator[str]:
    for name in sw.FAMILIES:
        scenes = [sw.family(name).scene("train", index) for index in range(3)]
        yield _figure(np.concatenate([sw.render(scene, SIZE).image for scene in scenes], axis=1), name)


def _captions() -> Iterator[str]:
    world = sw.family("cooccur")
    for index in range(4):
        scene = world.scene("train", index)
        noisy = sw.paragraph(scene, noise=sw.CaptionNoise(0.2))
        false = ", ".join(mention.kind for mention in noisy.mentions if not mention.true)
        lines = [f"caption: {sw.caption(scene).text}", f"list: {sw.listing(scene).text}", f"noisy: {noisy.text}"]
        yield _scene(scene, *lines, f"false in it: {false or 'nothing'}")


def _questions() -> Iterator[str]:
    for name in ("basic", "marks"):
        families = ("mark",) if name == "marks" else [family for family in sw.QUESTIONS if family != "mark"]
        for index in range(3):
            scene = sw.family(name, objects=(3, 4)).scene("train", index)
            asked = sw.questions(scene, families, each=2 if name == "marks" else 1)
            # Marks are to be read in a large picture and not in a small one.
            image = sw.render(scene, 384 if name == "marks" else SIZE).image
            yield _figure(image, *(f"{question.text} ? {question.answer}" for question in asked))


def _referring() -> Iterator[str]:
    for index, kind in enumerate(sw.REFERRING):
        scene = sw.family("basic", objects=(3, 5)).scene("train", index + 10)
        yield from (_found(sw.render(scene, SIZE), expression) for expression in sw.referring(scene, [kind]))
    scene = sw.family("two_of_a_kind").scene("train", 0)
    yield from (_found(sw.render(scene, SIZE), e) for e in sw.referring(scene, ["location", "false_premise"]))


def _found(picture: sw.Picture, expression: sw.Referring) -> str:
    """The picture, and beside it the target alone."""
    mask = np.zeros_like(picture.labels) if expression.target is None else picture.masks()[expression.target]
    alone = np.where(mask[..., None], picture.image, 255).astype(np.uint8)
    nearest = picture.scene.objects[expression.nearest]
    note = f"nothing; nearest is the {nearest.color} {nearest.kind}" if expression.target is None else "beside it"
    return _figure(
        np.concatenate([picture.image, alone], axis=1), f"{expression.kind}: {expression.text}", f"target: {note}"
    )


def _edits() -> Iterator[str]:
    for number, kind in enumerate(sw.EDITS):
        scene = sw.family("pairs", objects=(2, 3), pairs="seen").scene("train", number)
        for edit in sw.edits(scene, [kind]):
            mask = np.repeat(edit.mask(SIZE)[..., None] * np.uint8(255), 3, axis=-1)
            images = [sw.render(edit.source, SIZE).image, sw.render(edit.target, SIZE).image, mask]
            yield _figure(np.concatenate(images, axis=1), kind, edit.marked_source, edit.marked_target)


def _videos() -> Iterator[str]:
    world = sw.family("basic", objects=(1, 2), sizes=("medium",), patterns=("plain",), backgrounds=("plain",))
    for index, noise in enumerate((0, 28)):
        frames = sw.clip(world.scene("train", index), 8, (0.06, 0.09), frame_noise=noise)
        images = [sw.render(scene, 64).image for scene in frames]
        yield _figure(np.concatenate(images, axis=1), f"8 frames, noise of {noise} grey levels")
