"""load_text and load_table on folders laid out as the hub and the original releases lay them out."""

import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from attn.shared_eval.data import load_table, load_text

TEXTS = ["", " = A title = ", "", " A line with \u00e9 and \u2028 in it . ", " The last line ."]
ROWS = [{"sentence": '"Quoted" words', "label": 1}, {"sentence": "Another", "label": 0}]


def write_arrow(path, table, *, stream=True):
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with new(path, table.schema) as writer:
        writer.write_table(table)


def in_formats(folder):
    """The same texts as each format has them, a folder each."""
    lines = "".join(f"{text}\n" for text in TEXTS)
    table = pyarrow.table({"text": [f"{text}\n" if text else "" for text in TEXTS]})  # as the hub's WikiText
    written = {}
    for name in ("txt", "tokens", "parquet", "shards", "saved", "file", "jsonl", "json", "dataset"):
        written[name] = folder / name
        (folder / name).mkdir()
    (written["txt"] / "train.txt").write_text(lines, encoding="utf-8")
    (written["tokens"] / "wiki.train.tokens").write_text(lines, encoding="utf-8")
    pyarrow.parquet.write_table(table, written["parquet"] / "train-00000-of-00001.parquet")
    (written["shards"] / "data").mkdir()
    for shard, part in enumerate((table.slice(0, 2), table.slice(2))):
        pyarrow.parquet.write_table(part, written["shards"] / "data" / f"train-0000{shard}-of-00002.parquet")
    (written["saved"] / "train").mkdir()
    (written["saved"] / "train" / "state.json").write_text("{}")
    write_arrow(written["saved"] / "train" / "data-00000-of-00001.arrow", table)
    write_arrow(written["file"] / "wikitext-train.arrow", table, stream=False)
    objects = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    (written["jsonl"] / "train.jsonl").write_text("\n".join(objects) + "\n", encoding="utf-8")
    (written["json"] / "train.json").write_text("\n".join(objects), encoding="utf-8")
    (written["dataset"] / "train.json").write_text(f"[{','.join(objects)}]", encoding="utf-8")
    return written


def test_every_format_gives_the_same_texts(tmp_path):
    for name, folder in in_formats(tmp_path).items():
        assert load_text(folder, "train") == TEXTS, name


@pytest.mark.parametrize("name", ["train", "validation", "valid", "val", "dev"])
def test_validation_goes_by_several_names(tmp_path, name):
    (tmp_path / f"{name}.txt").write_text("x\n")
    (tmp_path / "test.txt").write_text("y\n")
    assert load_text(tmp_path, "train" if name == "train" else "validation") == ["x"]


def test_a_part_of_a_word_is_not_a_split(tmp_path):
    (tmp_path / "training.txt").write_text("x\n")
    (tmp_path / "dev_mismatched.tsv").write_text("a\tb\n1\t2\n")
    (tmp_path / "dev_matched.tsv").write_text("a\tb\n3\t4\n")
    assert load_table(tmp_path, "validation_matched") == [{"a": "3", "b": "4"}]
    with pytest.raises(
        FileNotFoundError, match=r"no file of split 'train' in .*found dev_matched.tsv, dev_mism.*train"
    ):
        load_text(tmp_path, "train")


def test_tables_of_glue(tmp_path):
    folders = {}
    for name in ("tsv", "csv", "jsonl", "parquet", "bare"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
    tsv = "".join(f"{row['sentence']}\t{row['label']}\n" for row in ROWS)
    (folders["tsv"] / "train.tsv").write_text("sentence\tlabel\n" + tsv)
    (folders["bare"] / "train.tsv").write_text(tsv)
    (folders["csv"] / "train.csv").write_text('sentence,label\n"""Quoted"" words",1\nAnother,0\n')
    (folders["jsonl"] / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folders["parquet"] / "train-00000-of-00001.parquet")
    strings = [row | {"label": str(row["label"])} for row in ROWS]
    assert load_table(folders["parquet"], "train") == load_table(folders["jsonl"], "train") == ROWS
    assert load_table(folders["tsv"], "train") == load_table(folders["csv"], "train") == strings
    assert load_table(folders["bare"], "train", columns=["sentence", "label"]) == strings
    assert load_text(folders["jsonl"], "train", column="sentence") == [row["sentence"] for row in ROWS]


def test_of_several_formats_the_first_is_read(tmp_path):
    folder = in_formats(tmp_path)["parquet"]
    (folder / "train.txt").write_text("other\n")
    assert load_text(folder, "train") == TEXTS


def test_malformed_files_are_refused_by_line(tmp_path):
    (tmp_path / "train.tsv").write_text("a\tb\n1\t2\n3\n")
    with pytest.raises(ValueError, match=r"train.tsv, line 3, must have the 2 columns a, b, got 1"):
        load_table(tmp_path, "train")
    (tmp_path / "test.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"test.jsonl, line 2, must be a JSON object"):
        load_table(tmp_path, "test")
    (tmp_path / "dev.jsonl").write_text('{"text": "x"}\n["y"]\n')
    with pytest.raises(ValueError, match=r"dev.jsonl, line 2, must be a JSON object, got list"):
        load_table(tmp_path, "validation")


def test_errors_name_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no file of split 'test' in .*nowhere.*found no files"):
        load_text(tmp_path / "nowhere", "test")
    (tmp_path / "train.jsonl").write_text('{"a": 1, "b": 2}\n')
    with pytest.raises(ValueError, match="column must be one of a, b, got 'text'"):
        load_text(tmp_path, "train")
    (tmp_path / "test.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs pyarrow: install attn-shared-eval\[tables\]"):
        load_text(tmp_path, "test")


def test_the_real_wikitext_is_read_whole(data_root):
    for split, name in (("validation", "valid.txt"), ("test", "test.txt")):
        texts = load_text(data_root / "wikitext-2", split)
        assert "\n".join([*texts, ""]) == (data_root / "wikitext-2" / name).read_text(encoding="utf-8")
        assert sum(text.startswith(" = ") and not text.startswith(" = = ") for text in texts) > 50  # articles
