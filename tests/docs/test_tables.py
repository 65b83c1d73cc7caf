"""Every number on the pages is one of a benchmark's record, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.docs._scripts import ROOT, load

builder, formats = load("build_tables"), load("_tables.formats")

DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?!\.?\w)")
PERCENT = re.compile(r"(?<![\w.])\d+(?:\.\d+)? ?%")

# Pages of which every decimal and per cent in a sentence is written from a record.
WHOLE_PAGES = ("README.md", "docs/background/benchmarks/index.md")
# Words with figures that are no measurement of ours, by page, each with the reason.
EXCEPTIONS = {
    "README.md": {
        "version 0.1": "of this package",
        "Python 3.11": "the oldest one that is tested",
        "earlyon 0.3": "a version",
        "scikit-fallback 0.2": "a version",
        "| 0 % |": "what doing nothing saves",
        "a margin of 0.05": "a setting",
    },
    "docs/background/benchmarks/index.md": {
        "margin of 0.02": "a setting",
        "at 50 and 60 % saved": "settings",
        "at 30 and 40 % BoostNet": "settings",
        "90 % confidence": "a setting",
        "until 0.1": "a version",
        "margin of 0.05": "a setting",
        "in place of 0.05": "a setting",
        "higher at 50 % saved": "a setting",
    },
    "docs/background/methods.md": {
        "31.58 % FLOPs reduction": "what others have published",
    },
    "docs/guide/baselines.md": {
        "| t | 0.5": "a setting of the paper",
        "h_k > 0.5": "a setting of the paper",
    },
    "docs/guide/branches.md": {
        "0.003 in mini-batches; 0.005 to 0.02": "default values",
        "| 0.01 |": "a default value",
    },
    "docs/guide/guarantees.md": {"at most 0.5 / 1 / 2 points": "settings"},
}
# Records of counts alone, which random weights have as well.
NOTHING_DRAWN: set[str] = set()


def by_hand(text: str, page: str) -> str:
    """Give a page without its code and without all that the records write."""
    for _, sentence in builder.sentences(page):
        found = builder.find(text, sentence)
        for k in range(1, found.re.groups + 1):
            start, end = found.span(k)
            text = text[:start] + "~" * (end - start) + text[end:]
    text = builder.TABLE.sub("", text)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    for words in EXCEPTIONS.get(page, ()):
        text = re.sub(r"\s+".join(map(re.escape, words.split())), "", text)
    return text


def read(page: str) -> str:
    """Read a page of this repository."""
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", builder.page_paths())
def test_page_states_what_the_records_say(page: str) -> None:
    """If this fails: python docs/build_tables.py, and look at what has changed."""
    assert read(page) == builder.written(read(page), page)


@pytest.mark.parametrize("page", builder.page_paths())
def test_no_table_of_figures_is_written_by_hand(page: str) -> None:
    """If this fails: add the table to docs/_tables, or an exception above."""
    lines = by_hand(read(page), page).splitlines()
    assert [line for line in lines if line[:1] == "|" and DECIMAL.search(line)] == []


@pytest.mark.parametrize("page", WHOLE_PAGES)
def test_no_figure_in_a_sentence_is_written_by_hand(page: str) -> None:
    """If this fails: add the sentence to docs/_tables, or an exception above."""
    text = by_hand(read(page), page)
    assert DECIMAL.findall(text) + PERCENT.findall(text) == []


@pytest.mark.parametrize("page", EXCEPTIONS)
def test_every_exception_is_needed(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = EXCEPTIONS[page]
    for words in wanted:
        others = {other: wanted[other] for other in wanted if other != words}
        monkeypatch.setitem(EXCEPTIONS, page, others)
        text = by_hand(read(page), page)
        assert DECIMAL.search(text) or PERCENT.search(text), words


def test_every_record_is_shown_on_a_page() -> None:
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in builder.page_paths()]
    shown = {
        found["record"] for text in pages for found in builder.TABLE.finditer(text)
    }
    shown |= {n for page in builder.page_paths() for n, _ in builder.sentences(page)}
    assert shown == set(builder.modules())


def test_every_table_stands_on_a_page() -> None:
    shown = {
        (found["record"], found["name"])
        for page in builder.page_paths()
        for found in builder.TABLE.finditer(read(page))
    }
    made = {
        (record, name)
        for record, module in builder.modules().items()
        for name in getattr(module, "TABLES", {})
    }
    assert shown == made


def keys(part: Any) -> set[str]:
    """Give the keys of a record at any depth."""
    if isinstance(part, list):
        return set().union(*map(keys, part))
    if isinstance(part, dict):
        return set(part).union(*map(keys, part.values()))
    return set()


def environments(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Give what a record, or each of its parts, was measured with."""
    parts = [record, *(part for part in record.values() if isinstance(part, dict))]
    return [part["environment"] for part in parts if "environment" in part]


@pytest.mark.parametrize("name", builder.modules())
def test_record_says_versions_seeds_and_settings(name: str) -> None:
    record = builder.record(name)
    assert record["what"]
    assert environments(record)
    for environment in environments(record):
        assert {"sk_calex", "python", "torch", "cpus"} <= set(environment)
    assert keys(record) & {"settings", "setting"}
    if name not in NOTHING_DRAWN:
        assert any(key.endswith(("seed", "seeds")) for key in keys(record))


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a page of one table and one sentence, of a record that says 0.25."""
    module = ModuleType("heads")
    module.TABLES = {
        "shares": lambda record: formats.Table(
            ["head", "share"], [["gap", formats.percent(record["share"])]]
        )
    }
    module.SENTENCES = (
        formats.Sentence(
            "page.md", "takes {} % of it", lambda r: [formats.percent(r["share"])]
        ),
    )
    page = tmp_path / "page.md"
    page.write_text(
        "It takes\n25.0 % of it.\n\n<!-- table: heads.shares -->\n\n"
        "| head | share |\n|---|---|\n| gap | 25.0 |\n\n<!-- end of table -->\n"
    )
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    monkeypatch.setattr(builder, "page_paths", lambda: ["page.md"])
    monkeypatch.setattr(builder, "modules", lambda: {"heads": module})
    monkeypatch.setattr(builder, "record", lambda name: {"share": 0.25})
    return page


def test_a_page_that_agrees_passes(example: Path) -> None:
    before = example.read_text()
    builder.main(["--check"])
    builder.main([])
    assert example.read_text() == before


@pytest.mark.parametrize(
    ("right", "wrong"), [("| gap | 25.0 |", "| gap | 26.0 |"), ("25.0 %", "25 %")]
)
def test_another_figure_fails_the_check_and_is_rewritten(
    example: Path, right: str, wrong: str, capsys: pytest.CaptureFixture
) -> None:
    before = example.read_text()
    example.write_text(before.replace(right, wrong))
    with pytest.raises(SystemExit) as end:
        builder.main(["--check"])
    assert end.value.code == 1
    assert "page.md: differs" in capsys.readouterr().out
    assert wrong in example.read_text(), "the check writes nothing"
    builder.main([])
    assert example.read_text() == before


def test_a_sentence_that_is_gone_is_an_error(example: Path) -> None:
    example.write_text(example.read_text().replace("of it", "of all"))
    with pytest.raises(ValueError, match=r"0 times 'takes \{\} % of it'"):
        builder.main([])


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("heads.shares", "heads.costs", "no table heads.costs"),
        ("heads.shares", "tails.shares", "no table tails.shares"),
        ("<!-- end of table -->", "", "whose end is missing"),
    ],
)
def test_a_table_that_nothing_makes_is_an_error(
    example: Path, right: str, wrong: str, message: str
) -> None:
    example.write_text(example.read_text().replace(right, wrong))
    with pytest.raises(ValueError, match=message):
        builder.main([])


def test_figures_left_by_hand_are_seen(example: Path) -> None:
    text = example.read_text()
    assert not DECIMAL.search(by_hand(text, "page.md"))
    more = text + "\n| gap | 26.0 |\n"
    assert DECIMAL.findall(by_hand(more, "page.md")) == ["26.0"]
    assert PERCENT.findall(by_hand(text + "or 26 %", "page.md")) == ["26 %"]


def test_numbers_are_written_with_their_spread() -> None:
    assert formats.mean_sd(0.72959, 0.00103) == "72.96 ± 0.10"
    assert formats.mean_sd(0.5, None, digits=1) == "50.0"
    assert formats.mean_sd(None, None) == "-"
    assert formats.percent(-0.00001) == "0.0"
    assert formats.signed(-0.004) == "-0.40"
    measured = {"median": 12.34, "min": 11.7, "max": 15.5, "n": 5}
    assert formats.spread(measured, 1) == "12.3 (11.7 to 15.5)"


def test_rows_of_a_table_are_as_long_as_its_head() -> None:
    table = formats.Table(["", "share"], [["gap", "1"]])
    assert table.markdown() == "| | share |\n|---|---|\n| gap | 1 |"
    with pytest.raises(ValueError, match="different lengths"):
        formats.Table(["", "share"], [["gap"]]).markdown()
