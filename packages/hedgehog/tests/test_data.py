"""Batches that are the same however they are read, and data sets in the formats of the hub."""

import json

import pytest
import torch
from transformers import BertTokenizer

from attn.hedgehog.data import (
    GLUE_COLUMNS,
    Batches,
    DocsBytesData,
    GlueData,
    LocalTextData,
    PackedRecallData,
    SamsumData,
    windows,
)
from attn.shared_eval.data import docs_bytes, packed_recall


def numbers(count, size, **options):
    return Batches(range(count), size, collate=lambda rows: {"rows": torch.tensor(rows)}, **options)


def read(batches):
    return [batch["rows"].tolist() for batch in batches]


def flat(rows):
    return [number for row in rows for number in row]


def test_every_example_is_read_once_and_in_order():
    assert read(numbers(7, 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert read(numbers(7, 3, drop_last=True)) == [[0, 1, 2], [3, 4, 5]]
    assert len(numbers(7, 3)) == 3
    assert len(numbers(7, 3, drop_last=True)) == 2


def test_shuffling_gives_a_new_order_each_epoch_that_depends_on_the_seed_alone():
    batches, same = (numbers(20, 4, shuffle=True, seed=3) for _ in range(2))
    first, second = read(batches), read(batches)
    assert sorted(flat(first)) == list(range(20))
    assert first != second
    assert [read(same), read(same)] == [first, second]
    assert read(numbers(20, 4, shuffle=True, seed=4)) != first


@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_a_loader_goes_on_where_another_stopped(stop):
    def stream(batches):
        while True:
            yield from batches

    whole, stopped, resumed = (numbers(17, 4, shuffle=True, drop_last=True) for _ in range(3))
    expected = [batch["rows"].tolist() for batch, _ in zip(stream(whole), range(12), strict=False)]
    for _ in zip(range(stop), stream(stopped), strict=False):
        pass
    resumed.load_state_dict(stopped.state_dict())
    rest = [batch["rows"].tolist() for batch, _ in zip(stream(resumed), range(12 - stop), strict=False)]
    assert rest == expected[stop:]


def test_worker_processes_change_nothing():
    assert read(Batches(range(9), 2, collate=as_rows, num_workers=2)) == read(numbers(9, 2))


def as_rows(rows):
    return {"rows": torch.tensor(rows)}


@pytest.mark.parametrize(("count", "drop_last"), [(12, False), (13, False), (14, False), (14, True)])
def test_ranks_share_every_batch(count, drop_last, monkeypatch):
    shares = []
    for rank in range(3):
        monkeypatch.setattr("attn.hedgehog.data._world", lambda rank=rank: (rank, 3))
        shares.append(read(numbers(count, 6, drop_last=drop_last)))
    assert len({len(share) for share in shares}) == 1
    together = [sorted(flat(rows)) for rows in zip(*shares, strict=True)]
    assert flat(together) == list(range(12 if drop_last else count))
    assert all(rows for share in shares for rows in share)


def test_packed_recall_is_the_shared_task():
    data = PackedRecallData(
        pairs=5, queries=3, keys=6, values=7, train_examples=20, eval_examples=4, batch_size=8, seed=2
    )
    train = list(data.train_dataloader())
    assert len(train) == 2
    expected = packed_recall(8, pairs=5, queries=3, keys=6, values=7, seed=2, index=8, split="train")
    for name in "key_ids", "value_ids", "labels":
        assert torch.equal(train[1][name], getattr(expected, name))
    (validation,) = data.val_dataloader()
    assert not torch.equal(validation["key_ids"], train[0]["key_ids"][:4])


def test_docs_bytes_come_in_windows():
    data = DocsBytesData(context=64, batch_size=4)
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(batch["input_ids"].flatten(), docs_bytes("test")[: 4 * 64].long())
    assert torch.equal(batch["labels"], batch["input_ids"])


def test_local_text_is_read_line_by_line(tmp_path):
    lines = ["= Title =", "", "Ein Satz.", "Noch einer, länger."]
    for split in "train", "valid", "test":
        (tmp_path / f"wiki.{split}.tokens").write_text("\n".join([split, *lines]) + "\n", encoding="utf-8")
    data = LocalTextData(str(tmp_path), "bytes", context=8, batch_size=2)
    text = ("\n".join(["valid", *lines]) + "\n").encode()
    ids = torch.cat([batch["input_ids"].flatten() for batch in data.val_dataloader()])
    assert bytes(ids.tolist()) == text[: len(text) // 8 * 8]


def test_real_text(data_root):
    data = LocalTextData(str(data_root / "wikitext-2"), "bytes", context=1024, batch_size=8)
    batch = next(iter(data.test_dataloader()))
    assert bytes(batch["input_ids"].flatten().tolist()).decode(errors="replace").lstrip().startswith("= ")


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with a BERT tokenizer of a few words."""
    folder = tmp_path / "tokenizer"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("task", GLUE_COLUMNS)
def test_glue_tasks_become_sequences_with_labels(task, tokenizer, tmp_path):
    columns = GLUE_COLUMNS[task]
    label = 2.5 if task == "stsb" else 1
    rows = [
        {**dict.fromkeys(columns, "a good film"), "label": label},
        {**dict.fromkeys(columns, "bad"), "label": 0},
    ]
    validation = "validation_matched" if task == "mnli" else "validation"
    for split in "train", validation:
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = GlueData(str(tmp_path), task, tokenizer, batch_size=2)
    (batch,) = data.val_dataloader()
    assert batch["labels"].tolist() == [label, 0]
    assert batch["labels"].dtype == (torch.float32 if task == "stsb" else torch.int64)
    assert batch["attention_mask"].sum(dim=1).tolist() == [1 + 4 * len(columns), 1 + 2 * len(columns)]
    assert len(list(data.train_dataloader())) == 1


def test_samsum_has_labels_on_the_summary_only(tmp_path):
    rows = [{"dialogue": "A: hi\nB: bye", "summary": "They part."}, {"dialogue": "A: ?", "summary": "Silence."}]
    for split in "train", "validation", "test":
        (tmp_path / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    data = SamsumData(str(tmp_path), "bytes", prompt="<{dialogue}>", batch_size=2)
    (batch,) = data.test_dataloader()
    for number, row in enumerate(rows):
        seen = batch["attention_mask"][number].bool()
        labels, ids = batch["labels"][number], batch["input_ids"][number]
        asked = labels != -100
        assert bytes(ids[seen & ~asked].tolist()).decode() == f"<{row['dialogue']}>"
        assert bytes(labels[asked][:-1].tolist()).decode() == row["summary"]
        assert labels[asked][-1] == data.tokenizer.eos_token_id
        assert not (asked & ~seen).any()
    short = SamsumData(str(tmp_path), "bytes", prompt="<{dialogue}>", batch_size=2, max_length=14)
    (batch,) = short.test_dataloader()
    assert batch["input_ids"].shape[1] == 14
    assert bytes(batch["input_ids"][0, :3].tolist()) == b"ye>"


def test_an_error_names_the_argument(tokenizer):
    with pytest.raises(ValueError, match=r"batch_size must be at least 1 .* at least 5 examples, got 5 and 3"):
        numbers(3, 5, drop_last=True)
    with pytest.raises(ValueError, match=r"batch_size must be at least 1 .*got 0 and 3"):
        numbers(3, 0)
    with pytest.raises(ValueError, match="context must lie in 2 to 5, the tokens of the text, got 6"):
        windows(torch.arange(5), 6)
    with pytest.raises(ValueError, match=r"task must be one of cola, sst2, .*, got 'wnli'"):
        GlueData("folder", "wnli", tokenizer)
