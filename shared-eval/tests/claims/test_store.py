"""The store of outcomes: round trips, damage, and what a cache key depends on."""

import datetime
import math

import numpy as np
import pytest

from attn.shared_eval.claims import Outcome, store

MEASURED = {
    "seconds": 1.5,
    "peak_memory_mib": 2.0,
    "hardware": "an abacus",
    "versions": {"torch": "1"},
    "date": datetime.date(2026, 1, 2),
}


def test_an_outcome_comes_back_as_it_was(tmp_path):
    arrays = {"file": np.arange(3), "allow_pickle": np.array(["a", "b"]), "flags": np.array([True])}
    figures = {"a": 0.1 + 0.2, "b": math.nan, "c": -math.inf}
    store.write(tmp_path, Outcome(figures, arrays, {"corpus": "abc"}), **MEASURED)
    record, outcome = store.read(tmp_path), store.load_outcome(tmp_path)
    assert record.seconds == 1.5
    assert record.date == datetime.date(2026, 1, 2)
    assert outcome.figures["a"] == figures["a"]
    assert math.isnan(outcome.figures["b"])
    assert outcome.figures["c"] == -math.inf
    assert outcome.data == {"corpus": "abc"}
    assert outcome.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(outcome.arrays[name], array)


def test_an_unfinished_outcome_is_none(tmp_path):
    assert store.read(tmp_path) is None
    store.write(tmp_path, Outcome({"a": 1}), **MEASURED)
    (tmp_path / "outcome.json").unlink()
    assert store.read(tmp_path) is None


@pytest.mark.parametrize("name", ["outcome.json", "arrays.npz"])
@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: content[:30] + b"x" + content[31:]])
def test_a_damaged_outcome_is_none(tmp_path, name, damage):
    store.write(tmp_path, Outcome({"a": 1}, {"x": np.arange(9)}), **MEASURED)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    assert store.read(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="no complete outcome in"):
        store.load_outcome(tmp_path)


def test_arrays_that_need_unpickling_are_refused(tmp_path):
    with pytest.raises(TypeError, match="array 'x' must hold numbers, booleans or text, got Python objects"):
        store.write(tmp_path, Outcome({}, {"x": np.array([object()])}), **MEASURED)
    assert not list(tmp_path.iterdir())


def test_nothing_but_the_outcome_is_left_in_the_folder(tmp_path):
    store.write(tmp_path, Outcome({"a": 1}), **MEASURED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays.npz", "outcome.json"]


def test_the_source_hash_changes_with_the_paper_and_the_lock_alone(toy):
    lock = toy.root / "uv.lock"
    lock.write_text("1")
    before = store.source_hash("attn.toy_paper", lock)
    (toy.source / "attn" / "toy_paper" / "__pycache__").mkdir()
    (toy.source / "attn" / "toy_paper" / "__pycache__" / "x.pyc").touch()
    assert store.source_hash("attn.toy_paper", lock) == before
    lock.write_text("2")
    relocked = store.source_hash("attn.toy_paper", lock)
    (toy.source / "attn" / "toy_paper" / "losses.py").write_text("x = 1\n")
    assert len({before, relocked, store.source_hash("attn.toy_paper", lock)}) == 3


def test_the_source_hash_leaves_out_what_no_experiment_can_see(tmp_path, monkeypatch):
    package = tmp_path / "attn" / "shared_eval"
    (package / "claims").mkdir(parents=True)
    files = [package / "data.py", package / "claims" / "experiment.py", package / "claims" / "report.py"]
    for file in files:
        file.write_text("1")
    monkeypatch.setattr(store, "_folders", lambda module: [package] if module == "attn.shared_eval" else [])
    hashes = [store.source_hash("attn.toy_paper", None)]
    for file in files:
        file.write_text("2")
        hashes.append(store.source_hash("attn.toy_paper", None))
    assert len(set(hashes)) == 3
    assert hashes[2] == hashes[3]


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"attn\.no_such_paper"):
        store.source_hash("attn.no_such_paper", None)


@pytest.mark.parametrize("fact", ["experiment", "tier", "seed", "device"])
def test_a_cache_key_changes_with_every_fact(fact):
    facts = {"experiment": "a", "tier": "mini", "seed": "0", "device": "cpu"}
    assert store.cache_key("source", **facts) != store.cache_key("source", **facts | {fact: "1"})
    assert store.cache_key("source", **facts) != store.cache_key("another", **facts)
