"""What the documentation shows but does not run: links, made pages, pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.docs._scripts import DOCS, ROOT, load

slugify = pytest.importorskip(
    "markdown.extensions.toc",
    reason="the tools of the documentation are not installed: see the extra 'docs'",
).slugify

SNIPPET = re.compile(r'^--8<-- "([\w./]+\.md)"$', re.MULTILINE)
LINK = re.compile(
    r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"|^\[\w+\]: (\S+)$", re.MULTILINE
)


def without_code(path: Path) -> str:
    """Give the text of a page, with the files that it takes in, without its code."""
    text = path.read_text(encoding="utf-8")
    text = SNIPPET.sub(lambda m: (ROOT / m[1]).read_text(encoding="utf-8"), text)
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Give the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(path), re.MULTILINE)
    return {slugify(re.sub(r"[`*]", "", heading), "-") for heading in headings}


def broken(path: Path, text: str) -> list[str]:
    """Give the links to files and headings of this repository that lead nowhere."""
    found = []
    for link in map("".join, LINK.findall(text)):
        target, _, anchor = link.partition("#")
        to = path if not target else (path.parent / target).resolve()
        if target.startswith(("http:", "https:", "mailto:")) or "api" in to.parts:
            continue  # pages of the API are made when the site is built
        if not to.exists() or (
            anchor and not anchor.startswith("only-") and anchor not in anchors(to)
        ):
            found.append(f"{path.name}: {link}")
    return found


def test_every_card_of_the_gallery_has_a_picture() -> None:
    page = (DOCS / "examples" / "index.md").read_text(encoding="utf-8")
    gallery = page.partition("gallery")[2].partition("</div>")[0]
    cards = re.split(r"^- ", gallery, flags=re.MULTILINE)[1:]
    shown = [re.match(r"\[!\[\]\((\w+\.png)\)\]\((\w+)\.md\)", card) for card in cards]
    assert all(shown), cards
    assert {match[2] for match in shown if match} == set(builder.NAMES)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs"])
def test_no_link_is_broken(name: str) -> None:
    """The strict build sees the site's links only, not those of the README."""
    pages = sorted(DOCS.rglob("*.md")) if name == "docs" else [ROOT / name]
    assert pages
    assert not [bad for page in pages for bad in broken(page, without_code(page))]


def test_the_check_of_links_can_fail() -> None:
    text = "[a](nowhere.md) [b](README.md#no-such-heading) [c](#install) [d](LICENSE)"
    text += "\n\n[e]: nowhere-else.md\n[f]: LICENSE\n"
    assert broken(ROOT / "README.md", text) == [
        "README.md: nowhere.md",
        "README.md: README.md#no-such-heading",
        "README.md: nowhere-else.md",
    ]


def test_readme_example_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for line in code[0].splitlines() if line and line[0] != "#"]
    assert len(lines) <= 15


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    listed = set(re.findall(r"[\w/]+\.md", nav.partition("nav:")[2]))
    assert pages - listed == set()
    assert listed - pages == {"api/index.md"}


builder = load("build_examples")


def test_every_example_has_a_page() -> None:
    made = {path.stem for path in (DOCS / "examples").glob("*.md")} - {"index"}
    assert made == set(builder.NAMES)
    listed = (DOCS / "examples" / "index.md").read_text(encoding="utf-8")
    assert all(f"({name}.md)" in listed for name in builder.NAMES)


@pytest.mark.parametrize("name", builder.NAMES)
def test_output_of_an_example_comes_from_its_script(name: str) -> None:
    """If this fails: python docs/build_examples.py, and look at what has changed."""
    text = (DOCS / "examples" / f"{name}.md").read_text(encoding="utf-8")
    printed = re.search(r"^```text\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert printed is not None
    pictures = list(builder.ALTERNATIVES.get(name, {}))
    assert text == builder.page(name, printed[1], pictures)
    for picture in pictures:
        path = DOCS / "examples" / f"{picture}.png"
        assert path.stat().st_size < 100_000
        with Image.open(path) as image:
            assert len(image.convert("L").getcolors()) > 2


def test_an_example_is_run_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, pages = tmp_path / "in", tmp_path / "out"
    examples.mkdir()
    script = (
        '"""Draw a dot.\n\n    python dot.py\n\nAnd say so.\n"""\n'
        "import sys\nfrom PIL import Image\n"
        "Image.new('RGB', (4, 4), 'red').save(sys.argv[-1] + '/dot.png')\n"
        "print('drawn')\n"
    )
    (examples / "dot.py").write_text(script, encoding="utf-8")
    monkeypatch.setattr(builder, "EXAMPLES", examples)
    monkeypatch.setattr(builder, "PAGES", pages)
    monkeypatch.setattr(builder, "NAMES", ("dot",))
    monkeypatch.setattr(builder, "ALTERNATIVES", {"dot": {"dot": "a dot"}})
    builder.main([])
    text = (pages / "dot.md").read_text(encoding="utf-8")
    assert "# Draw a dot\n\n    python dot.py\n\nAnd say so.\n" in text
    assert "```text\ndrawn\n```" in text
    assert "[![a dot](dot.png)](dot.png)" in text
    with Image.open(pages / "dot.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    before = builder.digest("dot")
    (examples / "dot.py").write_text(script + "# changed", encoding="utf-8")
    assert builder.digest("dot") != before
    assert "CascadeClassifier.input='samples'" in builder.defaults()


def test_pictures_of_the_evidence_show_the_record(tmp_path: Path) -> None:
    """If this fails: python docs/draw_evidence.py, and look at what has changed."""
    evidence = load("draw_evidence")
    record = json.loads(evidence.RECORD.read_text(encoding="utf-8"))
    evidence.main(tmp_path)
    for ground in evidence.GROUNDS:
        for name, words in (
            ("alignment", "total variation"),
            ("components", "points of accuracy gained"),
        ):
            kept = (DOCS / "images" / f"{name}-{ground}.svg").read_text("utf-8")
            drawn = (tmp_path / f"{name}-{ground}.svg").read_text("utf-8")
            for picture in (kept, drawn):
                assert f"numbers {evidence.digest(record)}" in picture
                assert words in picture


pages = load("build_pages")


@pytest.mark.parametrize("name", [pages.FIRST, *pages.PAGES])
def test_outputs_on_a_page_come_from_its_code(name: str) -> None:
    """If this fails: python docs/build_pages.py PAGE, and look at what has changed."""
    path = DOCS / pages.PAGES.get(name, f"{pages.FIRST}.md")
    text = path.read_text(encoding="utf-8")
    mark = pages.DIGEST.search(text)
    outputs = [found["output"] for found in pages.BLOCK.finditer(text)]
    if mark is None:
        assert not any(outputs), "outputs that nothing made"
        pytest.skip("a page without outputs")
    assert mark[1] == pages.digest(text)
    shown = re.findall(r"pictures/([\w.-]+\.svg)\)", text)
    assert {path.name for path in pages.PICTURES.glob(f"{name}-*")} == set(shown)


def test_code_on_a_page_is_run_and_its_output_written_below() -> None:
    text = (
        "# A page\n\n```python\na = 2\n```\n\n```python\nprint(a + b)\n```\n\n"
        "```text\nold\n```\n\nEnd.\n"
    )
    names = {"b": 3}
    made = pages.run(text, "page.md", names)
    assert names["a"] == 2
    mark = f"<!-- Outputs by docs/build_pages.py of code {pages.digest(text)}. -->\n"
    assert made == mark + text.replace("old", "5")
    # Once more it is the same, and prose does not count as code.
    assert pages.run(made, "page.md", {"b": 3}) == made
    assert pages.digest(text.replace("End", "Fin")) == pages.digest(text)
    assert pages.digest(text.replace("a = 2", "a = 3")) != pages.digest(text)


def test_an_output_that_is_no_longer_printed_is_refused() -> None:
    text = "```python\na = 2\n```\n\n```text\n2\n```\n"
    with pytest.raises(ValueError, match="shows an output and prints none"):
        pages.run(text, "page.md", {})


def test_pictures_on_a_page_are_those_that_its_code_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PICTURES", tmp_path / "pictures")
    path = tmp_path / "dots.md"
    code = (
        "```python\nimport matplotlib.pyplot as plt\n\nfigure, ax = plt.subplots()\n"
        'ax.plot([1], [1.23456789], "o")\nfigure.savefig("one.svg")\n```\n'
    )
    path.write_text(code, encoding="utf-8")
    with pytest.raises(ValueError, match=r"shows set\(\) and draws \{'one.svg'\}"):
        pages.build("dots", path, {})
    path.write_text(code + "\n![a dot](../pictures/dots-one.svg)\n", encoding="utf-8")
    pages.build("dots", path, {})
    svg = (tmp_path / "pictures" / "dots-one.svg").read_text(encoding="utf-8")
    assert "<metadata>" not in svg
    assert not re.search(r"\d\.\d{3}", svg.partition("<defs>")[2])
