"""Pages made from ledgers, and how stale ones are found."""

import pytest

from attn.shared_eval.claims.commands import main
from attn.shared_eval.claims.pages import BEGIN, END, PageError, render

PINNED = ("method", "baseline", "shuffled")


@pytest.fixture
def repository(toy):
    toy.write(toy.mini("half", PINNED), toy.mini("third", PINNED, verdict="fails", note="tried a|b"), toy.paper_tier)
    (toy.folder / "README.md").write_text(f"# Toy\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    (toy.root / "README.md").write_text(f"# All\n\n{BEGIN}\n{END}\n")
    return toy


def test_stale_pages_are_named_until_they_are_rendered(repository, capsys):
    root = repository.root
    pages = ["README.md", "docs/papers/toy-paper.md", "docs/results.md", "packages/toy-paper/README.md"]
    assert main(["pages", "--root", str(root), "--check"]) == 1
    printed = capsys.readouterr().out
    assert all(f"{root / page}: stale" in printed for page in pages)
    assert not (root / "docs").exists()
    assert main(["pages", "--root", str(root)]) == 0
    assert main(["pages", "--root", str(root), "--check"]) == 0
    repository.ledger.write_text(repository.ledger.read_text().replace("an abacus", "a loom"))
    assert sorted(str(path.relative_to(root)) for path in render(root, write=False)) == pages[1:]


def test_a_table_shows_what_the_ledger_records(repository):
    render(repository.root)
    text = (repository.folder / "README.md").read_text()
    assert text.startswith(f"# Toy\n\nBefore.\n\n{BEGIN}\n| claim |")
    assert text.endswith(f"{END}\n\nAfter.\n")
    half, third, large = [line for line in text.splitlines() if line.startswith("| **")]
    for part in ("0.5 (unverified)", "method 1<br>baseline 2", "`shuffled >= baseline`<br>shuffled 2.1", "**holds**"):
        assert part in half
    assert "an abacus<br>2026-01-02" in half
    assert "| **fails** |" in third
    paper = (repository.root / "docs" / "papers" / f"{repository.folder.name}.md").read_text()
    assert "- Verdict: **fails**: tried a|b" in paper
    assert all(part in large for part in ("16.7", "**not run**", "needs one GPU<br>8 hours"))
    assert "unverified" not in large


def test_the_overview_counts_verdicts_by_tier(repository):
    render(repository.root)
    text = (repository.root / "README.md").read_text()
    assert "| [toy-paper](packages/toy-paper/README.md) | A method that is half its baseline. | 1 | 0 | 1 | 1 |" in text


def test_a_paper_page_shows_the_plots(repository):
    (repository.folder / "figures").mkdir()
    (repository.folder / "figures" / "curves.png").touch()
    render(repository.root)
    page = (repository.root / "docs" / "papers" / "toy-paper.md").read_text()
    assert "![curves](../../packages/toy-paper/figures/curves.png)" in page
    assert "- Target: method 16.7 +- 0.4 (table 2)" in page


@pytest.mark.parametrize("text", ["# Toy\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"])
def test_a_page_without_its_markers_is_named(repository, text, capsys):
    (repository.folder / "README.md").write_text(text)
    with pytest.raises(PageError, match=r"toy-paper/README\.md: must hold one line <!-- claims:begin -->"):
        render(repository.root)
    assert main(["pages", "--root", str(repository.root)]) == 2
    assert "README.md: must hold" in capsys.readouterr().err
