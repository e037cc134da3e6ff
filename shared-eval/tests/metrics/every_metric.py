"""Every metric with the samples that it is tried on; run as a program, what two gloo processes make of them.

Usage: every_metric.py FOLDER, which gets the figures of each process as RANK.json. The first process has all samples
but the last, the second has that one; of a metric with one sample, the second process has none.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed
from torchmetrics.functional.image import peak_signal_noise_ratio

from attn.shared_eval import metrics as m

SHAPES = m.ObjectVocabulary({"circle": ["circle", "disk"], "cross": ["cross"]})
AMBER = m.AmberWords({"beach": ["sand"], "boat": ["ship"]})


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat_keys(images):
    return images.flatten(2).mT


def every_metric():
    """Name, metric, and per sample the arguments of an update with that sample alone."""
    captions = ["a circle and two disks", "a cross", "nothing", "circle " * 6]
    truth = [{"cross"}, {"cross"}, {"circle"}, {"circle", "cross"}]
    yes = ["Yes", "No", "No", "Yes"], [True, True, False, False], ["random", "popular", "popular", "adversarial"]
    masks = draw(4, 5, 6) < 0.5, (draw(4, 5, 6, seed=1) < 0.5).byte()
    images, others, regions = draw(4, 3, 8, 8), draw(4, 3, 8, 8, seed=1), draw(4, 8, 8, seed=2) < 0.5
    boxes = torch.cat([draw(4, 3, 2), 1 + draw(4, 3, 2)], dim=-1)
    proposals = [{"boxes": b, "scores": s} for b, s in zip(boxes + 0.1, draw(4, 3), strict=True)]
    texts = ["There is sand.", "a ship and a boat", "none", "beach"]
    objects = [["beach"]] * 4, [["boat"]] * 4
    logits, labels = draw(4, 3, 5), torch.arange(12).reshape(4, 3) % 5
    features = draw(6, 3)
    labelled = [p | {"labels": torch.tensor([1, 2, 2])} for p in proposals]
    known = {"labels": torch.tensor([1, 2, 3]), "negative": torch.tensor([]), "not_exhaustive": torch.tensor([2])}
    annotated = [{"boxes": b, **known} for b in boxes]
    frequencies = {1: "r", 2: "c", 3: "f"}
    videos = draw(4, 3, 8, 8) < 0.5, draw(4, 3, 8, 8, seed=1) < 0.5
    matcher = m.ObjectMatcher(SHAPES)

    def lists(*columns):
        return [([list(column)[i : i + 1] for column in columns], {}) for i in range(len(columns[0]))]

    def slices(*columns):
        return [([column[i : i + 1] for column in columns], {}) for i in range(len(columns[0]))]

    pairs = [("Yes", "No"), ("Yes", "Yes")], [(True, False)] * 2, ["color", "OCR"]
    return {
        "pope": (m.Pope(), lists(*yes)),
        "mme": (m.Mme(), lists(*pairs)),
        "chair": (m.Chair(matcher), lists(captions, truth)),
        "halbench": (m.ObjectHalBench(matcher), lists(captions, truth)),
        "amber": (m.AmberGenerative(AMBER), lists(texts, *objects)),
        "amber_yes_no": (m.AmberDiscriminative(), lists(yes[0], yes[1], ["state", "state", "relation", "number"])),
        "masks": (m.MaskIoU(), slices(*masks)),
        "points": (m.PointAccuracy(), slices(5 * draw(4, 2), masks[1])),
        "recall": (m.ClassAgnosticRecall(), lists(proposals, [{"boxes": b} for b in boxes])),
        "lvis": (m.LvisFixedAP(frequencies), lists(labelled, annotated)),
        "lvis_one_sample": (m.LvisFixedAP(frequencies), lists(labelled[:1], annotated[:1])),
        "videos": (m.JAndF(), slices(*videos)),
        "clip_score": (m.ClipScore(), slices(draw(4, 5), draw(4, 5, seed=1))),
        "region": (
            m.RegionScore(partial(peak_signal_noise_ratio, data_range=1.0)),
            slices(images, others, regions),
        ),
        "structure": (m.StructureDistance(flat_keys), slices(images, others)),
        "frechet": (m.FrechetDistance(3), [([features[i : i + 1]], {"real": i % 2 == 0}) for i in range(6)]),
        "nats": (m.NatsPerToken(), slices(logits, labels)),
        "perplexity": (m.TokenPerplexity(), slices(logits, labels)),
        "needles": (m.NeedleAccuracy(3), lists([1.0, 0.0, 0.25, 1.0], [0.0, 0.5, 0.9, 1.0])),
        "one_sample": (m.NeedleAccuracy(3), lists([0.5], [0.1])),
    }


def figures(metric):
    values = metric.compute()
    named = values if isinstance(values, dict) else {"value": values}
    return {name: float(value) for name, value in named.items()}


def _rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    result = {}
    for name, (metric, samples) in every_metric().items():
        share = samples if len(samples) == 1 else samples[:-1] if rank == 0 else samples[-1:]
        for positional, keywords in share if rank == 0 or len(samples) > 1 else []:
            metric.update(*positional, **keywords)
        metric._update_count = max(metric._update_count, 1)  # a rank without samples is no mistake here
        result[name] = figures(metric)
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    child = os.fork()
    _rank(int(child == 0), sys.argv[1])
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
