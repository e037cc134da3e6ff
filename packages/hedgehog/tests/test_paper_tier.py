"""The paper tier end to end on tiny random models and a few rows of data in the hub's formats."""

import dataclasses
import json
import math
import random
from datetime import timedelta

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from attn.hedgehog import experiments, paper_tier
from attn.hedgehog.data import GLUE_COLUMNS, ImageData
from attn.hedgehog.paper_tier import Settings, Stage, convert_bert, convert_gpt2, convert_llama2, convert_vit, train_gpt
from attn.shared_eval.claims import Context, MissingData
from attn.shared_eval.data import byte_tokenizer

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.5}
WORDS = ["red", "green", "blue", "round", "square", "small", "large", "bright"]
SHORT = Settings(
    finetune=Stage(epochs=2, lr=1e-3, schedule="cosine"),
    distill=Stage(epochs=3, lr=5e-2),
    teacher=Stage(epochs=1, lr=1e-3, accumulate=2),
    batch_size=2,
    eval_batch_size=3,
    length=16,
    max_new_tokens=4,
)


def sentence(draw, words=4):
    return " ".join(draw.choices(WORDS, k=words))


def save_parquet(folder, split, rows, **options):
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet", **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with everything in it, tiny."""
    folder, draw = tmp_path_factory.mktemp("root"), random.Random(0)
    torch.manual_seed(0)
    gpt2 = GPT2Config(vocab_size=262, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    GPT2LMHeadModel(gpt2).save_pretrained(folder / "gpt2")
    byte_tokenizer().save_pretrained(folder / "gpt2")
    text = folder / "wikitext-103-raw-v1"
    for split, lines in (("train", 8), ("validation", 4), ("test", 4)):
        save_parquet(text, split, [{"text": f" {sentence(draw, 5)} \n"} for _ in range(lines)])

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    bert = BertConfig(vocab_size=12, intermediate_size=16, max_position_embeddings=16, **SMALL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    BertModel(bert).save_pretrained(folder / "bert-base-uncased")
    BertForSequenceClassification(bert).save_pretrained(folder / "bert-base-uncased-rte")
    bert.num_labels = 3
    BertForSequenceClassification(bert).save_pretrained(folder / "bert-base-uncased-mnli")
    for name in ("", "-rte", "-mnli"):
        tokenizer.save_pretrained(folder / f"bert-base-uncased{name}")
    for task, columns in GLUE_COLUMNS.items():
        for split, rows in (("train", 4), ("validation_matched" if task == "mnli" else "validation", 6)):
            labels = [i % 3 if task == "mnli" else i * 0.7 if task == "stsb" else i % 2 for i in range(rows)]
            table = [{column: sentence(draw) for column in columns} | {"label": label} for label in labels]
            save_parquet(folder / "glue" / task, split, table)

    vit = ViTConfig(intermediate_size=16, image_size=8, patch_size=4, num_labels=3, **SMALL)
    ViTForImageClassification(vit).save_pretrained(folder / "vit-base-patch16-224")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder / "vit-base-patch16-224")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for i, image in enumerate(pixels):
            place = folder / "imagenet-1k" / split / f"n{i % 3}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i}.png")

    llama = {"vocab_size": 262, "intermediate_size": 16, "num_key_value_heads": 2, "max_position_embeddings": 96}
    ends = {"bos_token_id": 257, "eos_token_id": 258}
    LlamaForCausalLM(LlamaConfig(**llama, **ends, **SMALL)).save_pretrained(folder / "Llama-2-7b-hf")
    byte_tokenizer().save_pretrained(folder / "Llama-2-7b-hf")
    (folder / "samsum").mkdir()
    for split, rows in (("train", 4), ("validation", 2), ("test", 2)):
        dialogues = [
            {"id": str(i), "dialogue": f"A: {sentence(draw)}", "summary": sentence(draw, 2)} for i in range(rows)
        ]
        (folder / "samsum" / f"{split}.json").write_text(json.dumps(dialogues))
    return folder


class BrokenOffError(Exception):
    pass


class Log(list):
    """Keeps what is reported, and breaks a training off at a step of it."""

    def __init__(self, break_off=None):
        super().__init__()
        self.break_off = break_off

    def __call__(self, done, total, text=""):
        assert 0 <= done <= total
        self.append((text, done))
        if self.break_off is not None and self.count(text) == self.break_off[1] and text == self.break_off[0]:
            raise BrokenOffError

    def count(self, text):
        return sum(name == text for name, _ in self)


def context(work_dir, root, progress=None):
    work_dir.mkdir(exist_ok=True)
    return Context("paper", 0, torch.device("cpu"), work_dir, root, Log() if progress is None else progress)


def divergences(*arms):
    return {f"kl_{arm}{when}" for arm in arms for when in ("", "_undistilled")}


def check(outcome, figures, work_dir, trainings):
    """The figures are those, and finite; distillation brought the maps closer to softmax; all trainings are kept."""
    assert set(outcome.figures) == figures
    assert all(math.isfinite(value) for value in outcome.figures.values())
    distilled = [name for name in figures if f"{name}_undistilled" in figures]
    for name in distilled:
        assert outcome.figures[name] < outcome.figures[f"{name}_undistilled"]
    assert len(list(work_dir.glob("*.safetensors"))) == trainings


@pytest.fixture(scope="module")
def gpt2_run(root, tmp_path_factory):
    """GPT-2's experiment without a break: the outcome, what was reported, and the work folder."""
    log, work_dir = Log(), tmp_path_factory.mktemp("gpt2")
    return convert_gpt2(context(work_dir, root, log), SHORT), log, work_dir


def test_gpt2_is_finetuned_and_converted(gpt2_run):
    outcome, log, work_dir = gpt2_run
    arms = {"softmax_zero_shot", "softmax_finetuned", "hedgehog", "t2r"}
    check(outcome, arms | divergences("hedgehog"), work_dir, trainings=4)
    assert outcome.figures["softmax_finetuned"] < outcome.figures["softmax_zero_shot"]
    steps = {"finetune softmax finetuned": 16, "distill hedgehog": 24, "finetune hedgehog": 16, "finetune t2r": 16}
    trained = [text for text, _ in log if text.startswith(("finetune", "distill"))]
    assert trained == [text for text, number in steps.items() for _ in range(number)]


def test_what_was_broken_off_goes_on_to_the_same_figures(gpt2_run, root, tmp_path, monkeypatch):
    expected, whole, whole_dir = gpt2_run
    monkeypatch.setattr(paper_tier, "SAVE_EVERY", timedelta(microseconds=1))
    work_dir = tmp_path / "work"
    # The second breaks off before there is a checkpoint: the maps are those that distillation left.
    for text, step in (("distill hedgehog", 11), ("finetune hedgehog", 1), ("finetune hedgehog", 4)):
        with pytest.raises(BrokenOffError):
            convert_gpt2(context(work_dir, root, Log((text, step))), SHORT)
    log = Log()
    assert convert_gpt2(context(work_dir, root, log), SHORT).figures == expected.figures
    assert log.count("distill hedgehog") == log.count("finetune softmax finetuned") == 0
    # The checkpoint of the step before is taken up; the T2R model that comes after is trained as a whole.
    assert log.count("finetune hedgehog") == whole.count("finetune hedgehog") - 3
    assert log.count("finetune t2r") == whole.count("finetune t2r")
    for file in whole_dir.glob("*.safetensors"):
        one, other = load_file(file), load_file(work_dir / file.name)
        assert all(torch.equal(one[name], other[name]) for name in one), file.name


def test_what_is_finished_is_not_repeated(gpt2_run, root):
    outcome, _, work_dir = gpt2_run
    log = Log()
    assert convert_gpt2(context(work_dir, root, log), SHORT).figures == outcome.figures
    assert log == []


def test_bert_is_finetuned_on_a_task_unless_it_is_and_converted(root, tmp_path, monkeypatch):
    tasks = ("cola", "stsb", "mnli")  # the others are like cola; mnli's teacher is in the data root
    monkeypatch.setattr(paper_tier, "GLUE_COLUMNS", {task: GLUE_COLUMNS[task] for task in tasks})
    outcome = convert_bert(context(tmp_path, root), SHORT)
    softmax = {f"softmax_{task}" for task in tasks}
    check(outcome, {*tasks, *softmax, *divergences(*tasks), "recovered"}, tmp_path, trainings=8)
    scores = [sum(outcome.figures[name] for name in names) for names in (tasks, softmax)]
    assert outcome.figures["recovered"] == pytest.approx(100 * scores[0] / scores[1])


def test_the_scores_of_glue_are_per_cent():
    logged = {
        "test_accuracy": 0.5,
        "test_f1": 0.25,
        "test_matthews": 0.125,
        "test_pearson": 0.75,
        "test_spearman": 0.25,
    }
    scores = {task: score(logged) for task, score in paper_tier.GLUE_SCORES.items()}
    assert scores == dict.fromkeys(GLUE_COLUMNS, 50.0) | {"cola": 12.5, "mrpc": 25.0, "stsb": 50.0}


def test_vit_is_converted(root, tmp_path):
    outcome = convert_vit(context(tmp_path, root), SHORT)
    check(outcome, {"softmax", "hedgehog", "t2r", *divergences("hedgehog", "t2r")}, tmp_path, trainings=4)


def test_llama2_is_converted_with_lora(root, tmp_path):
    outcome = convert_llama2(context(tmp_path, root), dataclasses.replace(SHORT, length=96))
    arms = ("softmax_zero_shot", "softmax", "hedgehog", "t2r")
    figures = {f"{arm}_{key}" for arm in arms for key in ("rouge1", "rouge2", "rougeL")}
    check(outcome, figures | divergences("hedgehog"), tmp_path, trainings=4)
    trained = load_file(tmp_path / "finetune_hedgehog.safetensors")
    projections = {name.split(".lora_A")[0].rsplit(".", 1)[1] for name in trained if "lora_A" in name}
    assert projections == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(value.shape[0] == 8 for name, value in trained.items() if "lora_A" in name)
    assert all("lora" in name or "_map" in name for name in trained)


def test_gpt_is_trained_from_scratch(root, tmp_path):
    outcome = train_gpt(context(tmp_path, root), dataclasses.replace(SHORT, precision="bf16-mixed"))
    check(outcome, {"softmax", "hedgehog", "elu", "performer"}, tmp_path, trainings=4)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("gpt2_wikitext103", "gpt2, .*: download the snapshot of openai-community/gpt2"),
        ("gpt_from_scratch_wikitext103", "gpt2, .*: download the snapshot of openai-community/gpt2"),
        ("bert_glue", "glue/cola, .*: download the files of nyu-mll/glue"),
        ("vit_imagenet", "vit-base-patch16-224, .*: download the snapshot of google/vit-base-patch16-224"),
        ("llama2_samsum", r"Llama-2-7b-hf, .*: download the snapshot of meta-llama/Llama-2-7b-hf \(gated\)"),
    ],
)
def test_missing_data_is_named(name, missing, tmp_path):
    with pytest.raises(MissingData, match=missing):
        getattr(experiments, name)(context(tmp_path, tmp_path))
    with pytest.raises(MissingData, match="pass --data-root FOLDER"):
        getattr(experiments, name)(context(tmp_path, None))


def test_missing_data_sets_are_named(root, tmp_path):
    for name in ("gpt2", "bert-base-uncased", "vit-base-patch16-224", "Llama-2-7b-hf"):
        (tmp_path / name).symlink_to(root / name)
    for run, missing in (
        (convert_gpt2, "wikitext-103-raw-v1, .*: download the files of Salesforce/wikitext"),
        (train_gpt, "wikitext-103-raw-v1, .*: download the files of Salesforce/wikitext"),
        (convert_vit, "imagenet-1k, .*: download the files of ILSVRC/imagenet-1k"),
        (convert_llama2, "samsum, .*: download the files of Samsung/samsum"),
    ):
        with pytest.raises(MissingData, match=missing):
            run(context(tmp_path / "work", tmp_path))


def test_images_are_the_same_from_folders_and_from_parquet(root, tmp_path):
    files = sorted((root / "imagenet-1k" / "val").glob("*/*.png"))
    rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "label": int(file.parent.name[1:])} for file in files]
    for split in ("train", "validation"):
        save_parquet(tmp_path / "data", split, rows, row_group_size=2)
    processor = str(root / "vit-base-patch16-224")
    folders, tables = (ImageData(str(place), processor, batch_size=4) for place in (root / "imagenet-1k", tmp_path))
    for one, other in zip(folders.test_dataloader(), tables.test_dataloader(), strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["labels"], other["labels"])
    first = next(iter(folders.test_dataloader()))
    with Image.open(files[0]) as image:
        resized = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR), dtype=np.float64)
    expected = torch.from_numpy(resized / 255 * 2 - 1).permute(2, 0, 1).float()
    torch.testing.assert_close(first["pixel_values"][0], expected, atol=1e-6, rtol=0)
    assert first["labels"].tolist() == [0, 0, 1, 1]


def test_row_groups_are_shuffled_in_pools(root, tmp_path):
    rows = [{"image": {"bytes": b"", "path": None}, "label": i} for i in range(25)]
    save_parquet(tmp_path, "train", rows, row_group_size=3)
    images = ImageData(str(tmp_path), str(root / "vit-base-patch16-224")).examples("train")
    images.pooled = 2
    order = images.permutation(torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(25))
    assert order != list(range(25))
    assert order != images.permutation(torch.Generator().manual_seed(1))
    # Reading in this order touches two row groups at a time.
    touched = [row // 3 for row in order]
    assert all(max(touched.index(g), 0) + 6 > len(touched) - 1 - touched[::-1].index(g) for g in set(touched))


def test_images_must_be_there(root, tmp_path):
    data = ImageData(str(tmp_path), str(root / "vit-base-patch16-224"))
    with pytest.raises(
        FileNotFoundError, match=r"must hold validation-\*\.parquet or validation/<class>/, has neither"
    ):
        data.examples("test")
