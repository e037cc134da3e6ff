"""The language-model tasks against readers that solve each prompt from its decoded text alone."""

import re
from functools import partial
from hashlib import sha256

import pytest
import torch
from torch.utils.data import DataLoader

from attn.shared_eval.data import IndexStream, corpus_fingerprint, docs_corpus, text_tokenizer
from attn.shared_eval.data.tasks import (
    chained_lookup,
    docs_tokens,
    k_shot,
    kv_recall,
    list_reading,
    multi_hop,
    pad_prompts,
    passkey,
)

TASKS = {
    "kv_recall": kv_recall,
    "passkey": passkey,
    "k_shot": k_shot,
    "multi_hop": multi_hop,
    "chained_lookup": chained_lookup,
    "list_reading": list_reading,
}
GOLDEN = {
    "kv_recall": "910cb108b7964263",
    "passkey": "44f0017c40930d44",
    "k_shot": "624b3394465fdc91",
    "multi_hop": "ffa9040dea3cf1a7",
    "chained_lookup": "728fcdecfc7766da",
    "list_reading": "5e2ad85ff46c854b",
    "corpus": "ed9ce62aaa8c7570371b1e17272ff936a443000e62d28025df32cc553c8d0f51",
}
WORD = r"<w\d+>"


@pytest.fixture(scope="module")
def tokenizer():
    return text_tokenizer()


@pytest.fixture(scope="module")
def text(tokenizer):
    return lambda ids: tokenizer.decode(ids)


def pieces(prompt, text):
    """Text before each answer, the answer, and its evidence, decoded; checks what holds for every prompt."""
    assert text(prompt.ids[:1]) == "<bos>"
    assert prompt.ids.dtype == prompt.labels.dtype == torch.int64
    answered = set()
    for (start, stop), evidence in prompt.answers:
        answered |= set(range(start, stop))
        assert all(1 <= low < high <= start for low, high in evidence)
        yield text(prompt.ids[:start]), text(prompt.ids[start:stop]), [text(prompt.ids[a:b]) for a, b in evidence]
    for position, label in enumerate(prompt.labels.tolist()):
        assert label == (prompt.ids[position] if position in answered else -100)
    if prompt.choices:
        assert len(set(prompt.choices)) == len(prompt.choices)
        assert all(prompt.ids[answer.span[0]] in prompt.choices for answer in prompt.answers)


@pytest.mark.parametrize("separator", [";", ".", "\n"])
@pytest.mark.parametrize(
    ("pairs", "queries", "distractors", "gap"), [(1, 1, 0, 0), (8, 3, 0, 5), (24, 24, 7, 0), (48, 1, 48, 300)]
)
def test_kv_recall_names_the_value(text, separator, pairs, queries, distractors, gap):
    for index in range(5):
        prompt = kv_recall(index, pairs=pairs, queries=queries, distractors=distractors, gap=gap, separator=separator)
        assert len(prompt.ids) == 2 + 3 * (pairs + distractors + queries) + gap
        asked = []
        for before, answer, evidence in pieces(prompt, text):
            key = re.findall(WORD, before)[-1]
            stated = re.findall(f"({WORD})({WORD})(?={re.escape(separator)})", before)[: pairs + distractors]
            assert len(stated) == pairs + distractors
            assert [value for word, value in stated if word == key] == [answer]
            assert evidence == [key + answer]
            asked.append(key)
        assert len(set(asked)) == len(asked) == queries
        assert len(prompt.choices) == pairs


@pytest.mark.parametrize("pairs", [4, 5, 20])
def test_kv_recall_with_letters_names_the_option(text, pairs):
    letters = set()
    for index in range(20):
        prompt = kv_recall(index, pairs=pairs, queries=3, answer="letter", gap=2)
        for before, answer, evidence in pieces(prompt, text):
            key = re.findall(WORD, before)[-1]
            known = dict(re.findall(f"({WORD})({WORD});", before))
            options = re.findall(f"([A-D])({WORD})", before)[-4:]
            assert [letter for letter, _ in options] == list("ABCD")
            assert len({value for _, value in options}) == 4
            assert {value for _, value in options} <= set(known.values())
            assert [letter for letter, value in options if value == known[key]] == [answer]
            assert evidence == [key + known[key], answer + known[key]]
            letters.add(answer)
        assert text(list(prompt.choices)) == "ABCD"
        assert len(prompt.answers) == 3
    assert letters == set("ABCD")


@pytest.mark.parametrize("filler", ["noise", "docs"])
@pytest.mark.parametrize("length", [5, 6, 64, 301])
def test_passkey_stands_once_at_its_depth(text, filler, length):
    for depth, start in [(0, 1), (1, length - 3), (None, None)]:
        prompt = passkey(3, length=length, depth=depth, filler=filler, split="val")
        assert len(prompt.ids) == length + 1
        ((before, answer, evidence),) = pieces(prompt, text)
        assert before.count("<q>") == 2
        assert before.endswith("<q>")
        assert re.findall(f"<q>({WORD})", before) == [answer]
        assert evidence == ["<q>" + answer]
        if start is not None:
            assert prompt.answers[0].evidence[0][0] == start


def test_passkey_depths_are_spread_and_halfway_is_halfway():
    starts = [passkey(index, length=104).answers[0].evidence[0][0] for index in range(400)]
    assert 1 <= min(starts) < 6
    assert 96 < max(starts) <= 101
    assert abs(sum(starts) / 400 - 51) < 6
    assert passkey(0, length=104, depth=0.5).answers[0].evidence[0][0] == 51


def test_passkey_keeps_to_a_block():
    for index in range(100):
        free, aligned = (passkey(index, length=130, block=block).answers[0].evidence[0] for block in (None, 16))
        assert aligned[0] == max(1, free[0] - free[0] % 16)
        assert aligned[0] // 16 == (aligned[1] - 1) // 16


def test_passkey_in_prose_leaves_the_prose_as_it_is():
    prompt = passkey(1, length=80, filler="docs", split="val")
    ((start, stop),) = prompt.answers[0].evidence
    prose = torch.cat([prompt.ids[1:start], prompt.ids[stop:79]]).tolist()
    tokens = docs_tokens("val").tolist()
    assert any(tokens[i : i + len(prose)] == prose for i in range(len(tokens)) if tokens[i] == prose[0])


@pytest.mark.parametrize(("shots", "classes", "words"), [(1, 2, 1), (4, 3, 2), (3, 8, 4)])
def test_k_shot_labels_follow_from_categories_that_all_prompts_share(text, shots, classes, words):
    category = {}  # learnt from the other prompts: words that ever share a label belong together
    prompts = [k_shot(index, shots=shots, classes=classes, words=words, queries=3) for index in range(400)]
    for prompt in prompts:
        by_label = {}
        for line in text(prompt.ids[1:]).strip().split("\n"):
            *inputs, label = re.findall(WORD, line)
            assert len(inputs) == words
            by_label.setdefault(label, set()).update(inputs)
        assert len(by_label) == classes
        for group in by_label.values():
            group = frozenset().union(group, *(category.get(word, ()) for word in group))
            category |= dict.fromkeys(group, group)
    assert sorted(map(len, set(category.values()))) == [6] * 8
    for prompt in prompts[:50]:
        for before, answer, evidence in pieces(prompt, text):
            *lines, line = before.removeprefix("<bos>").split("\n")
            asked = re.findall(WORD, line)
            examples = [(*re.findall(WORD, shown),) for shown in lines[: shots * classes]]
            right = ["".join(example) for example in examples if category[example[0]] == category[asked[0]]]
            assert {category[word] for word in asked} == {category[asked[0]]}
            assert evidence == right
            assert len(right) == shots
            assert all(shown.endswith(answer) for shown in right)
        assert len(prompt.choices) == classes


@pytest.mark.parametrize(
    ("paragraphs", "hops", "queries", "filler"),
    [(1, 1, 1, (0, 0)), (8, 2, 4, (2, 8)), (13, 3, 2, (0, 20)), (48, 4, 12, (1, 1)), (2, 2, 1, (5, 5))],
)
def test_multi_hop_follows_references_backwards(text, paragraphs, hops, queries, filler):
    for index in range(8):
        prompt = multi_hop(index, paragraphs=paragraphs, hops=hops, queries=queries, filler=filler)
        for before, answer, evidence in pieces(prompt, text):
            lines = before.removeprefix("<bos>").split("\n")
            stated, shown = {}, []
            for line in lines[:paragraphs]:
                key, body = re.fullmatch(rf"({WORD}):((?:{WORD})+)\.", line).groups()
                words = re.findall(WORD, body)
                place = words.index(key)
                assert filler[0] <= len(words) - 2 <= filler[1]
                stated[key] = words[place + 1]
                assert stated[key] in shown or stated[key] not in (w.split(":")[0] for w in lines[:paragraphs])
                shown.append(key)
            assert len(stated) == paragraphs
            word, path = re.findall(WORD, lines[-1])[0], []
            while word in stated:
                path.append(word + stated[word])
                word = stated[word]
            assert word == answer
            assert path == evidence
            assert len(path) == hops
        assert len(prompt.answers) == queries


@pytest.mark.parametrize(
    ("records", "page", "hops", "lookups"), [(2, 3, 1, 1), (16, 4, 15, 1), (16, 5, 7, 2), (48, 8, 4, 3)]
)
def test_chained_lookup_writes_the_orbit(text, records, page, hops, lookups):
    for index in range(8):
        prompt = chained_lookup(index, records=records, page=page, hops=hops, lookups=lookups)
        assert len(prompt.ids) == page * (records + 1) + 1 + hops
        tokens = [text([token]) for token in prompt.ids]
        function = {tokens[page * i]: tokens[page * i + 1] for i in range(1, records + 1)}
        assert len(function) == len(set(function.values())) == records
        assert not set(function) & {w for i, w in enumerate(tokens[: page * (records + 1)]) if i % page > 1}
        word, words = tokens[page * (records + 1)], {tokens[page * (records + 1)]}
        for (_, answer, evidence), (_, spans) in zip(pieces(prompt, text), prompt.answers, strict=True):
            path = []
            for _ in range(lookups):
                path.append(word + function[word])
                word = function[word]
            assert answer == word
            assert evidence == path
            assert all(start % page == 0 for start, _ in spans)
            assert word not in words
            words.add(word)
        assert len(prompt.choices) == records


@pytest.mark.parametrize(
    ("items", "top", "decimals", "ties"),
    [(1, 1, 2, False), (6, 3, 2, False), (10, 10, 1, False), (30, 5, 1, True), (160, 2, 4, False)],
)
def test_list_reading_names_the_highest_scores(text, items, top, decimals, ties):
    repeated = False
    for index in range(8):
        prompt = list_reading(index, items=items, top=top, decimals=decimals, ties=ties)
        scores = {}
        found = []
        for before, answer, evidence in pieces(prompt, text):
            line, _ = before.removeprefix("<bos>").split("\n")
            listed = re.findall(rf"(\w+) \((0\.\d{{{decimals}}})\)", line)
            scores = {word: float(score) for word, score in listed}
            assert len(scores) == len(listed) == items
            assert evidence == [f" {answer.strip()} ({scores[answer.strip()]:.{decimals}f})"]
            found.append(answer.strip())
        best = []
        while len(best) < top:  # the first of the highest that are left
            left = {word: score for word, score in scores.items() if word not in best}
            best.append(next(word for word in left if left[word] == max(left.values())))
        assert found == best
        assert text(prompt.ids).endswith("\nthe words " + ", ".join(best) + "\n")
        repeated |= len(set(scores.values())) < items
    assert repeated == ties


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_is_a_function_of_its_index_split_and_seed(name):
    task = TASKS[name]
    first = task(3)
    again = task(3)
    assert torch.equal(first.ids, again.ids)
    assert first.answers == again.answers
    others = [task(4), task(3, seed=1), task(3, split="val")]
    assert len({tuple(prompt.ids.tolist()) for prompt in [first, *others]}) == 4


def test_golden_hashes():
    """Noise and prose alike; the merges, and so the ids of words, depend on the corpus."""
    assert corpus_fingerprint() == GOLDEN["corpus"], "the corpus drifted, and with it the ids of list_reading"
    found = {}
    for name, task in TASKS.items():
        content = b"".join(x.numpy().astype("<i8").tobytes() for i in range(16) for x in task(i)[:2])
        found[name] = sha256(content).hexdigest()[:16]
    assert found == {name: GOLDEN[name] for name in TASKS}


def test_prompts_stream_in_any_number_of_workers():
    stream = partial(IndexStream, partial(kv_recall, pairs=4), stop=6)
    alone = list(stream())
    loaded = list(DataLoader(stream(), batch_size=None, num_workers=2))
    assert [prompt.ids.tolist() for prompt in loaded] == [prompt.ids.tolist() for prompt in alone]
    ranks = [list(stream(rank=rank, world_size=2)) for rank in (0, 1)]
    assert [prompt.ids.tolist() for prompt in ranks[1]] == [prompt.ids.tolist() for prompt in alone[1::2]]


def test_padding_stands_on_the_right(tokenizer):
    prompts = [kv_recall(0, pairs=2), kv_recall(1, pairs=5)]
    for length in (None, 40):
        batch = pad_prompts(prompts, length=length)
        assert batch["input_ids"].shape == (2, length or len(prompts[1].ids))
        for row, prompt in enumerate(prompts):
            tokens = len(prompt.ids)
            assert torch.equal(batch["input_ids"][row, :tokens], prompt.ids)
            assert torch.equal(batch["labels"][row, :tokens], prompt.labels)
            assert batch["input_ids"][row, tokens:].eq(tokenizer.pad_token_id).all()
            assert batch["labels"][row, tokens:].eq(-100).all()
            assert batch["attention_mask"][row].tolist() == [1] * tokens + [0] * (batch["labels"].shape[1] - tokens)
    with pytest.raises(ValueError, match="length must be at least 23, the tokens of the longest prompt, got 22"):
        pad_prompts([kv_recall(0, pairs=6)], length=22)
    with pytest.raises(ValueError, match="prompts must not be empty"):
        pad_prompts([])


def test_docs_tokens_are_the_paragraphs(tokenizer):
    text = tokenizer.decode(docs_tokens("val")[:2000])
    paragraphs = text.replace("<eos>", "").split("\n")[:-1]
    assert paragraphs == docs_corpus("val")[: len(paragraphs)]
    assert [part.count("\n") for part in text.split("<eos>")[:-1]] == [4] * text.count("<eos>")


@pytest.mark.parametrize(
    ("task", "dials", "message"),
    [
        (kv_recall, {"answer": "word"}, "answer must be 'value' or 'letter', got 'word'"),
        (kv_recall, {"separator": ","}, "separator must be ';', '.' or a newline, got ','"),
        (kv_recall, {"pairs": 0}, "pairs must lie in 1 .. 48, got 0"),
        (kv_recall, {"pairs": 3, "answer": "letter"}, "pairs must lie in 4 .. 48, got 3"),
        (kv_recall, {"queries": 9}, "queries must lie in 1 .. 8, got 9"),
        (kv_recall, {"distractors": -1}, "distractors must lie in 0 .. 1024, got -1"),
        (kv_recall, {"gap": -1}, "gap must lie in 0 .. 65536, got -1"),
        (passkey, {"length": 4}, "length must lie in 5 .. 65536, got 4"),
        (passkey, {"depth": float("nan")}, "depth must lie in 0 .. 1, got nan"),
        (passkey, {"block": 2}, "block must lie in 3 .. 256, got 2"),
        (passkey, {"filler": "code"}, "filler must be 'noise' or 'docs', got 'code'"),
        (passkey, {"filler": "docs", "split": "dev"}, "split must be one of train, val, test, test_in_domain"),
        (k_shot, {"shots": 0}, "shots must lie in 1 .. 256, got 0"),
        (k_shot, {"classes": 9}, "classes must lie in 2 .. 8, got 9"),
        (k_shot, {"words": 0}, "words must lie in 1 .. 16, got 0"),
        (k_shot, {"queries": 0}, "queries must lie in 1 .. 1024, got 0"),
        (multi_hop, {"paragraphs": 49}, "paragraphs must lie in 1 .. 48, got 49"),
        (multi_hop, {"paragraphs": 3, "hops": 4}, "hops must lie in 1 .. 3, got 4"),
        (multi_hop, {"queries": 5}, "queries must lie in 1 .. 4, got 5"),
        (multi_hop, {"filler": (-1, 3)}, r"filler\[0\] must lie in 0 .. 4096, got -1"),
        (multi_hop, {"filler": (4, 3)}, r"filler\[1\] must lie in 4 .. 4096, got 3"),
        (chained_lookup, {"records": 1}, "records must lie in 2 .. 48, got 1"),
        (chained_lookup, {"page": 2}, "page must lie in 3 .. 4096, got 2"),
        (chained_lookup, {"lookups": 4}, "lookups must lie in 1 .. 3, got 4"),
        (chained_lookup, {"hops": 8, "lookups": 2}, "hops must lie in 1 .. 7, got 8"),
        (list_reading, {"decimals": 5}, "decimals must lie in 1 .. 4, got 5"),
        (list_reading, {"items": 101}, "items must lie in 1 .. 100, got 101"),
        (list_reading, {"items": 161, "ties": True}, "items must lie in 1 .. 160, got 161"),
        (list_reading, {"top": 7}, "top must lie in 1 .. 6, got 7"),
    ],
)
def test_errors_name_the_argument(task, dials, message):
    with pytest.raises(ValueError, match=message):
        task(0, **dials)
