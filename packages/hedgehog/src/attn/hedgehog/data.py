"""Data modules: packed recall, text, GLUE, SAMSum and images, in batches that a killed run takes up again."""

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import PIL.Image
import pyarrow.parquet
import torch
import torch.distributed
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase

from attn.hedgehog.metrics import IGNORED
from attn.shared_eval.data import (
    ReviewsDataset,
    byte_tokenizer,
    docs_bytes,
    load_table,
    load_text,
    packed_recall,
    reviews,
    shapes_tokenizer,
)

Batch = dict[str, Tensor]
Split = Literal["train", "validation", "test"]

SUMMARY_PROMPT = "Summarize this dialogue:\n{dialogue}\n---\nSummary:\n"

GLUE_COLUMNS: dict[str, tuple[str, ...]] = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}


class SizedDataset(Protocol):
    """A data set with a length."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: int, /) -> Any: ...


class Batches:
    """A loader whose order is a function of seed and epoch, and which goes on inside an epoch where it was stopped.

    Every rank takes its rows of every batch, so that a run on several devices sees the batches of a run on one.
    Lightning saves and restores the position with its checkpoints (`state_dict`, `load_state_dict`).

    Args:
        dataset: the examples.
        batch_size: examples in a batch, over all ranks.
        collate: makes a batch of a list of examples.
        shuffle: draw a new order each epoch.
        drop_last: leave out an incomplete last batch.
        seed: of the order.
        num_workers: processes that load; does not change the batches.

    Raises:
        ValueError: if there is no batch in which every rank has a row.
    """

    def __init__(
        self,
        dataset: SizedDataset,
        batch_size: int,
        *,
        collate: Callable[[Any], Batch],
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        world_size = _world()[1]
        least = batch_size if drop_last else world_size
        if not world_size <= batch_size or len(dataset) < least:
            raise ValueError(
                f"batch_size must be at least {world_size} (ranks) and dataset must hold at least {least} examples, "
                f"got {batch_size} and {len(dataset)}"
            )
        self.dataset, self.batch_size, self.collate = dataset, batch_size, collate
        self.shuffle, self.drop_last, self.seed, self.num_workers = shuffle, drop_last, seed, num_workers
        self.epoch = self.done = 0
        self._resumed = False

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        # A rest with fewer rows than ranks joins the batch before it, so that all ranks have equally many batches.
        return full + (not self.drop_last and rest >= _world()[1])

    def __iter__(self) -> Iterator[Batch]:
        if not self._resumed and self.done:
            self.epoch, self.done = self.epoch + 1, 0
        if self.done == len(self):
            self.epoch, self.done = self.epoch + 1, 0
        self._resumed = False
        loader = DataLoader(
            cast(Dataset[Any], self.dataset),
            batch_sampler=self._rows()[self.done :],
            collate_fn=self.collate,
            num_workers=self.num_workers,
        )
        for batch in loader:
            self.done += 1
            yield batch

    def _rows(self) -> list[list[int]]:
        """This rank's rows of every batch of the epoch."""
        rank, world_size = _world()
        order = range(len(self.dataset)) if not self.shuffle else self._permutation()
        starts = [number * self.batch_size for number in range(len(self))]
        stops = [*starts[1:], len(self) * self.batch_size if self.drop_last else len(self.dataset)]
        return [list(order[start + rank : stop : world_size]) for start, stop in zip(starts, stops, strict=True)]

    def _permutation(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 2**20 + self.epoch)
        if isinstance(self.dataset, ParquetImages):
            return self.dataset.permutation(generator)
        return torch.randperm(len(self.dataset), generator=generator).tolist()

    def state_dict(self) -> dict[str, int]:
        """The position: the epoch and the batches of it that are done."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a position."""
        self.epoch, self.done, self._resumed = state["epoch"], state["done"], True


class TaskData(LightningDataModule):
    """A data module of three splits (abstract): `examples` gives a split's data set, `collate` makes its batches.

    Args:
        batch_size: examples in a training batch, over all devices.
        eval_batch_size: the same in evaluation; None is batch_size.
        num_workers: processes that load.
        seed: of the order of the training examples.
    """

    shuffle = True

    def __init__(
        self, *, batch_size: int, eval_batch_size: int | None = None, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = seed

    def examples(self, split: Split) -> SizedDataset:
        """The data set of a split."""
        raise NotImplementedError

    def collate(self) -> Callable[[Any], Batch]:
        """What makes a batch of a list of examples; picklable."""
        raise NotImplementedError

    def train_dataloader(self) -> Batches:
        """Batches of the training split, in a new order each epoch; an incomplete last one is left out."""
        return Batches(
            self.examples("train"),
            self.batch_size,
            collate=self.collate(),
            shuffle=self.shuffle,
            drop_last=True,
            seed=self.seed,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> Batches:
        """Batches of the validation split, in order."""
        return self._evaluation("validation")

    def test_dataloader(self) -> Batches:
        """Batches of the test split, in order."""
        return self._evaluation("test")

    def predict_dataloader(self) -> Batches:
        """Batches of the test split, in order."""
        return self._evaluation("test")

    def _evaluation(self, split: Split) -> Batches:
        return Batches(self.examples(split), self.eval_batch_size, collate=self.collate(), num_workers=self.num_workers)


class PackedRecallData(TaskData):
    """Packed associative recall (`attn.shared_eval.data.packed_recall`): every training example is new.

    Args:
        pairs: key-value pairs of an example.
        queries: pairs asked for.
        keys: size of the key vocabulary.
        values: size of the value vocabulary.
        train_examples: examples of an epoch; a second epoch repeats them.
        eval_examples: examples of the validation and of the test split.
        batch_size: examples in a batch, over all devices.
        seed: which data set.
    """

    shuffle = False

    def __init__(
        self,
        *,
        pairs: int = 20,
        queries: int = 20,
        keys: int = 20,
        values: int = 20,
        train_examples: int = 32_000,
        eval_examples: int = 1_024,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self.task = {"pairs": pairs, "queries": queries, "keys": keys, "values": values, "seed": seed}
        self.train_examples, self.eval_examples = train_examples, eval_examples

    def examples(self, split: Split) -> SizedDataset:
        """The examples of a split; splits are independent."""
        return _RecallExamples(self.train_examples if split == "train" else self.eval_examples, split, self.task)

    def collate(self) -> Callable[[Any], Batch]:
        """Nothing: examples are drawn a batch at once."""
        return _same


class DocsBytesData(TaskData):
    """Windows of bytes of the docs corpus (`attn.shared_eval.data.docs_bytes`), without overlap.

    Args:
        context: bytes of a window.
        batch_size: windows in a batch, over all devices.
        test_split: ``"test"`` (another package's docs) or ``"test_in_domain"``.
        seed: of the order of the training windows.
    """

    def __init__(
        self,
        *,
        context: int = 128,
        batch_size: int = 32,
        test_split: Literal["test", "test_in_domain"] = "test",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self.context, self.test_split = context, test_split

    def examples(self, split: Split) -> SizedDataset:
        """The windows of a split."""
        name = {"train": "train", "validation": "val", "test": self.test_split}[split]
        return windows(docs_bytes(cast(Any, name)), self.context)

    def collate(self) -> Callable[[Any], Batch]:
        """Ids that are their own labels."""
        return language_model_batch


class ReviewsData(TaskData):
    """Phrase-cue reviews (`attn.shared_eval.data.reviews`) in the words of `shapes_tokenizer`, in two classes.

    Args:
        train_reviews: of an epoch.
        eval_reviews: of the validation and of the test split.
        length: tokens of a sequence.
        batch_size: reviews in a batch, over all devices.
        seed: which reviews, and the order of the training reviews.
    """

    def __init__(
        self,
        *,
        train_reviews: int = 4_000,
        eval_reviews: int = 512,
        length: int = 64,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self.train_reviews, self.eval_reviews, self.length = train_reviews, eval_reviews, length

    def examples(self, split: Split) -> SizedDataset:
        """The reviews of a split; splits are independent."""
        number = self.train_reviews if split == "train" else self.eval_reviews
        return ReviewsDataset(reviews(split, number, seed=self.seed), shapes_tokenizer(), length=self.length)

    def collate(self) -> Callable[[Any], Batch]:
        """Stacks the tensors of reviews."""
        return default_collate


class LocalTextData(TaskData):
    """Windows of tokens of a local text data set in one of the hub's formats (WikiText-103), without overlap.

    Args:
        folder: holds the files of the splits, see `attn.shared_eval.data.load_text`.
        tokenizer: folder or name of the tokenizer; ``"bytes"`` is one token a byte.
        context: tokens of a window.
        column: column of the text.
        batch_size: windows in a batch, over all devices; 8 is the paper's for GPT-2.
        eval_batch_size: the same in evaluation; None is batch_size.
        num_workers: processes that load.
        seed: of the order of the training windows.
    """

    def __init__(
        self,
        folder: str,
        tokenizer: str,
        *,
        context: int = 1024,
        column: str = "text",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        self.folder, self.context, self.column = folder, context, column
        self._windows: dict[Split, SizedDataset] = {}
        self.tokenizer = byte_tokenizer() if tokenizer == "bytes" else AutoTokenizer.from_pretrained(tokenizer)

    def examples(self, split: Split) -> SizedDataset:
        """The windows of a split: its lines, each with its line end, one after the other; kept once they are made."""
        if split not in self._windows:
            self._windows[split] = self._make_windows(split)
        return self._windows[split]

    def _make_windows(self, split: Split) -> SizedDataset:
        lines = [line + "\n" for line in load_text(self.folder, split, column=self.column)]
        tokens: list[Tensor] = []
        for start in range(0, len(lines), 1000):
            encoded = self.tokenizer(lines[start : start + 1000], add_special_tokens=False)["input_ids"]
            tokens.extend(torch.tensor(ids, dtype=torch.int32) for ids in encoded)
        return windows(torch.cat(tokens), self.context)

    def collate(self) -> Callable[[Any], Batch]:
        """Ids that are their own labels."""
        return language_model_batch


class GlueData(TaskData):
    """A task of GLUE in the hub's format, for sequence classification; STS-B for regression.

    The test split is the validation split, whose labels are public; MNLI's is the matched one.

    Args:
        folder: holds the files of the task's splits.
        task: a name in `GLUE_COLUMNS`.
        tokenizer: folder or name of the tokenizer.
        max_length: tokens at which a sequence is cut.
        batch_size: sequences in a batch, over all devices.
        eval_batch_size: the same in evaluation; None is batch_size.
        num_workers: processes that load.
        seed: of the order of the training sequences.

    Raises:
        ValueError: if the task is unknown.
    """

    def __init__(
        self,
        folder: str,
        task: str,
        tokenizer: str,
        *,
        max_length: int = 128,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if task not in GLUE_COLUMNS:
            raise ValueError(f"task must be one of {', '.join(GLUE_COLUMNS)}, got {task!r}")
        self.folder, self.task, self.max_length = folder, task, max_length
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)

    def examples(self, split: Split) -> SizedDataset:
        """The rows of a split."""
        if split == "train":
            return load_table(self.folder, "train")
        return load_table(self.folder, "validation_matched" if self.task == "mnli" else "validation")

    def collate(self) -> Callable[[Any], Batch]:
        """Tokens padded on the right, and labels."""
        return partial(
            classification_batch,
            tokenizer=self.tokenizer,
            columns=GLUE_COLUMNS[self.task],
            max_length=self.max_length,
            label_dtype=torch.float32 if self.task == "stsb" else torch.int64,
        )


class SamsumData(TaskData):
    """Dialogues and their summaries (SAMSum: columns ``dialogue`` and ``summary``), the loss on the summary only.

    Args:
        folder: holds the files of the splits.
        tokenizer: folder or name of the tokenizer.
        prompt: text before the summary, with ``{dialogue}`` in it; the paper's is not known.
        max_length: tokens of prompt and summary; of a longer prompt the beginning is left out.
        batch_size: dialogues in a batch, over all devices.
        eval_batch_size: the same in evaluation; None is batch_size.
        num_workers: processes that load.
        seed: of the order of the training dialogues.
    """

    def __init__(
        self,
        folder: str,
        tokenizer: str,
        *,
        prompt: str = SUMMARY_PROMPT,
        max_length: int = 1024,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        self.folder, self.prompt, self.max_length = folder, prompt, max_length
        self.tokenizer = byte_tokenizer() if tokenizer == "bytes" else AutoTokenizer.from_pretrained(tokenizer)

    def examples(self, split: Split) -> SizedDataset:
        """The rows of a split."""
        return load_table(self.folder, split)

    def collate(self) -> Callable[[Any], Batch]:
        """Prompt and summary, padded on the right; labels on the summary and its end."""
        return partial(summary_batch, tokenizer=self.tokenizer, prompt=self.prompt, max_length=self.max_length)


class ImageData(TaskData):
    """Images and their classes (ImageNet), made ready by the model's image processor, without augmentation.

    The test split is the validation split, whose labels are public.

    Args:
        folder: holds the hub's parquet files (columns ``image`` and ``label``), in it or in its folder ``data``; or a
            folder for each split, with a folder of image files for each class, numbered in order of name.
        processor: folder or name of the image processor.
        batch_size: images in a batch, over all devices.
        eval_batch_size: the same in evaluation; None is batch_size.
        num_workers: processes that load.
        seed: of the order of the training images.
    """

    def __init__(
        self,
        folder: str,
        processor: str,
        *,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        self.folder = Path(folder)
        self.processor = AutoImageProcessor.from_pretrained(processor, backend="pil")

    def examples(self, split: Split) -> SizedDataset:
        """The images of a split.

        Raises:
            FileNotFoundError: if there are none.
        """
        names = ("train",) if split == "train" else ("validation", "val")
        for name in names:
            for place in (self.folder / "data", self.folder):
                if files := sorted(place.glob(f"{name}-*.parquet")):
                    return ParquetImages(files)
            if files := sorted(file for file in (self.folder / name).glob("*/*") if file.is_file()):
                return FolderImages(files)
        raise FileNotFoundError(f"{self.folder} must hold {names[0]}-*.parquet or {names[0]}/<class>/, has neither")

    def collate(self) -> Callable[[Any], Batch]:
        """Pixel values, and classes as labels."""
        return partial(image_batch, processor=self.processor)


Image = tuple[PIL.Image.Image, int]  # and its class


class FolderImages(Dataset[Image]):
    """Image files, a folder for each class: class i is the i-th folder in order of name.

    Args:
        files: of all classes.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.classes = {name: number for number, name in enumerate(sorted({file.parent.name for file in files}))}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int) -> Image:
        with PIL.Image.open(self.files[item]) as image:
            return image.convert("RGB"), self.classes[self.files[item].parent.name]


class ParquetImages(Dataset[Image]):
    """Images in the hub's parquet files, which are read by row groups (about a hundred rows).

    Args:
        files: in order.
    """

    pooled = 16  # row groups that are shuffled together, and kept in memory

    def __init__(self, files: Sequence[Path]) -> None:
        self.groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        for file in files:
            with pyarrow.parquet.ParquetFile(file) as table:
                self.groups += [(file, number) for number in range(table.num_row_groups)]
                sizes += [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
        self.stops = list(accumulate(sizes))

    def __len__(self) -> int:
        return self.stops[-1]

    def __getitem__(self, item: int) -> Image:
        number = bisect_right(self.stops, item)
        row = _row_group(*self.groups[number])[item - self.stops[number]]  # counted from the end
        with PIL.Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            return image.convert("RGB"), row["label"]

    def permutation(self, generator: torch.Generator) -> list[int]:
        """An order in which row groups are drawn in pools, and the rows of a pool are shuffled."""
        starts = [0, *self.stops[:-1]]
        order: list[int] = []
        for pool in torch.randperm(len(self.groups), generator=generator).split(self.pooled):
            rows = torch.cat([torch.arange(starts[number], self.stops[number]) for number in pool.tolist()])
            order += rows[torch.randperm(len(rows), generator=generator)].tolist()
        return order


@lru_cache(maxsize=ParquetImages.pooled + 1)
def _row_group(file: Path, number: int) -> list[dict[str, Any]]:
    with pyarrow.parquet.ParquetFile(file) as table:
        rows: list[dict[str, Any]] = table.read_row_group(number, columns=["image", "label"]).to_pylist()
        return rows


class _RecallExamples(Dataset[Any]):
    """Examples of packed recall by index, drawn for a whole batch."""

    def __init__(self, examples: int, split: str, task: dict[str, int]) -> None:
        self.number, self.split, self.task = examples, split, task

    def __len__(self) -> int:
        return self.number

    def __getitems__(self, items: Sequence[int]) -> Batch:
        first, stop = min(items), max(items) + 1
        drawn = packed_recall(stop - first, index=first, split=self.split, **self.task)
        rows = torch.tensor(items) - first
        return {name: getattr(drawn, name)[rows] for name in ("key_ids", "value_ids", "labels")}

    def __getitem__(self, item: int) -> Batch:
        return {name: tensor[0] for name, tensor in self.__getitems__([item]).items()}


def windows(tokens: Tensor, context: int) -> SizedDataset:
    """The windows of `context` tokens of ``[tokens]``, without overlap: ``[windows, context]``; the rest is dropped.

    Raises:
        ValueError: if there is not one window.
    """
    if not 2 <= context <= len(tokens):
        raise ValueError(f"context must lie in 2 to {len(tokens)}, the tokens of the text, got {context}")
    return tokens[: len(tokens) // context * context].view(-1, context)


def language_model_batch(rows: Sequence[Tensor]) -> Batch:
    """Windows of tokens as input ids and labels, int64 ``[batch, context]``."""
    ids = torch.stack(tuple(rows)).long()
    return {"input_ids": ids, "labels": ids}


def classification_batch(
    rows: Sequence[Mapping[str, Any]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[str],
    max_length: int,
    label_dtype: torch.dtype,
) -> Batch:
    """Tokenize the columns of rows as (pairs of) sentences, padded on the right, with the column ``label``."""
    texts = [[row[column] for row in rows] for column in columns]
    encoded = tokenizer(*texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    labels = torch.tensor([float(row["label"]) for row in rows]).to(label_dtype)
    return {**encoded, "labels": labels}


def summary_batch(
    rows: Sequence[Mapping[str, str]], *, tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int
) -> Batch:
    """Prompts and summaries as input ids, padded on the right, with labels on the summaries and their end."""
    sequences = []
    for row in rows:
        question = tokenizer(prompt.format(dialogue=row["dialogue"]))["input_ids"]
        answer = tokenizer(row["summary"], add_special_tokens=False)["input_ids"][: max_length - 1]
        answer = [*answer, tokenizer.eos_token_id]
        question = question[max(0, len(question) + len(answer) - max_length) :]
        sequences.append((question, answer))
    longest = max(len(question) + len(answer) for question, answer in sequences)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.full((len(rows), longest), pad)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for number, (question, answer) in enumerate(sequences):
        length = len(question) + len(answer)
        ids[number, :length] = torch.tensor(question + answer)
        labels[number, len(question) : length] = torch.tensor(answer)
        mask[number, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def image_batch(examples: Sequence[Image], *, processor: Any) -> Batch:
    """Pixel values ``[batch, channels, height, width]`` of images, and their classes as labels, int64."""
    images, classes = zip(*examples, strict=True)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    return {"pixel_values": pixels, "labels": torch.tensor(classes)}


def _same(batch: Batch) -> Batch:
    return batch


def _world() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
