"""Write the tables and figures of the pages from the benchmarks' records.

    python docs/build_tables.py            # rewrite the pages that differ
    python docs/build_tables.py --check    # name them and fail

Run this after a new record in ``examples/benchmarks/results``, and look at what has
changed: words around a figure, such as "half", stay as they are. ``docs/_tables`` says
which numbers of a record stand where.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from _tables.formats import Sentence

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BENCHMARKS = ROOT / "examples" / "benchmarks"
RECORDS = BENCHMARKS / "results"
sys.path.append(str(BENCHMARKS))  # what reads fronts off the records is there

TABLE = re.compile(
    r"<!-- table: (?P<record>\w+)\.(?P<name>\w+) -->\n"
    r"(?P<content>.*?)<!-- end of table -->",
    re.DOTALL,
)
FIGURE = r"[-+]?\d(?:[\d,.]*\d)?(?:e[-+]?\d+)?"  # what may stand in place of {}


def page_paths() -> list[str]:
    """Give the pages that may state figures, as paths in the repository."""
    pages = sorted(DOCS.rglob("*.md"))
    return ["README.md", *(str(page.relative_to(ROOT)) for page in pages)]


@cache
def record(name: str) -> dict[str, Any]:
    """Read the record of a benchmark."""
    found: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text("utf-8"))
    return found


def modules() -> dict[str, ModuleType]:
    """Give the modules that show records, by the record's name."""
    names = sorted(path.stem for path in RECORDS.glob("*.json"))
    return {name: importlib.import_module(f"_tables.{name}") for name in names}


def with_tables(text: str, page: str) -> str:
    """Give a page with its tables as the records have them."""

    def table(found: re.Match[str]) -> str:
        name, part = found["record"], found["name"]
        tables = getattr(modules().get(name), "TABLES", {})
        if part not in tables:
            raise ValueError(f"{page}: no table {name}.{part} in docs/_tables.")
        content = tables[part](record(name)).markdown()
        # Blank lines: Markdown ends the comment there, and reads the table as one.
        return f"<!-- table: {name}.{part} -->\n\n{content}\n\n<!-- end of table -->"

    if text.count("<!-- table:") != len(TABLE.findall(text)):
        raise ValueError(f"{page}: a table whose end is missing, or a bad name.")
    return TABLE.sub(table, text)


def sentences(page: str) -> Iterator[tuple[str, Sentence]]:
    """Give the sentences of a page, each after the name of its record."""
    for name, module in modules().items():
        for sentence in getattr(module, "SENTENCES", ()):
            if sentence.page == page:
                yield name, sentence


def find(text: str, sentence: Sentence) -> re.Match[str]:
    """Find a sentence on its page, whatever its figures and line breaks are."""
    words = [re.escape(word) for word in sentence.words.split(" ")]
    pattern = r"\s+".join(words).replace(re.escape("{}"), f"({FIGURE})")
    found = list(re.finditer(pattern, text))
    if len(found) != 1:
        raise ValueError(
            f"{sentence.page}: {len(found)} times {sentence.words!r}, expected once: "
            "change it in docs/_tables as on the page."
        )
    return found[0]


def with_figures(text: str, page: str) -> str:
    """Give a page with the figures in its sentences as the records have them."""
    for name, sentence in sentences(page):
        found = find(text, sentence)
        figures = list(sentence.figures(record(name)))
        if len(figures) != found.re.groups:
            raise ValueError(
                f"{page}: {len(figures)} figures for {sentence.words!r}, which has "
                f"{found.re.groups} places."
            )
        for k, figure in reversed(list(enumerate(figures, start=1))):
            start, end = found.span(k)
            text = text[:start] + figure + text[end:]
    return text


def written(text: str, page: str) -> str:
    """Give a page as the records have it."""
    return with_figures(with_tables(text, page), page)


def main(argv: list[str] | None = None) -> None:
    """Rewrite the pages, or say which ones differ from the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(argv).check
    differ = []
    for page in page_paths():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        new = written(text, page)
        if new != text:
            differ.append(page)
            if not check:
                path.write_text(new, encoding="utf-8")
    for page in differ:
        print(f"{page}: {'differs' if check else 'rewritten'}")
    if check and differ:
        parser.exit(1, "Run python docs/build_tables.py, and look at what changed.\n")


if __name__ == "__main__":
    main()
