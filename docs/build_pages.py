"""Run the code on the pages, and keep what it prints and draws beside it.

    python docs/build_pages.py                # the quickstart and the user guide
    python docs/build_pages.py inspection     # one page, after the quickstart

Every Python block of a page is run as a reader runs it: pages of the guide go on where
the quickstart stopped. What a block prints is written below it, as a block of text; the
pictures that it saves as SVG go to ``docs/pictures``, named after page and file, where
the page shows them. Run this after a change to such a page, or to a default, and look
at what has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"

FIRST = "quickstart"
# Pages that need nothing but what a reader holds at the end of the quickstart.
PAGES = {
    "backbones": "guide/backbones.md",
    "branches": "guide/branches.md",
    "calibration": "guide/calibration.md",
    "operating_point": "guide/operating_point.md",
    "inspection": "guide/inspection.md",
    "choose_settings": "guide/choose_settings.md",
    "exit_rules": "guide/exit_rules.md",
    "baselines": "guide/baselines.md",
    "feature_store": "guide/feature_store.md",
    "export_onnx": "howto/export_onnx.md",
    "write_your_own_method": "howto/write_your_own_method.md",
    "deploy": "guide/deploy.md",
}
# A Python block, and the block of text right below it, if there is one.
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
DIGEST = re.compile(r"<!-- Outputs by docs/build_pages.py of code (\w+). -->\n")

# Text stays text, in whatever sans-serif there is; the ground is that of the page.
STYLE: dict[Any, Any] = {
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "sk_calex",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
}


def digest(text: str) -> str:
    """Give a digest of the code on a page."""
    code = "".join(found["code"] for found in BLOCK.finditer(text))
    return hashlib.sha256(code.encode()).hexdigest()[:12]


def run(text: str, where: str, names: dict[str, Any]) -> str:
    """Run a page's code in `names`; gives the page with what it printed."""

    def with_output(found: re.Match[str]) -> str:
        line = text.count("\n", 0, found.start("code"))
        printed = io.StringIO()
        code = compile("\n" * line + found["code"], where, "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        block = f"```python\n{found['code']}```\n"
        if printed.getvalue():
            block += f"\n```text\n{printed.getvalue().rstrip()}\n```\n"
        elif found["output"] is not None:
            raise ValueError(f"{where}: a block shows an output and prints none.")
        return block

    text = BLOCK.sub(with_output, text)
    mark = f"<!-- Outputs by docs/build_pages.py of code {digest(text)}. -->\n"
    return mark + DIGEST.sub("", text)


def build(name: str, path: Path, names: dict[str, Any]) -> None:
    """Run a page, and write what it printed and drew."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        text = run(path.read_text(encoding="utf-8"), str(path), names)
        plt.close("all")
        shown = set(re.findall(rf"pictures/{name}-([\w.-]+)\)", text))
        drawn = {picture.name: picture for picture in Path(folder).glob("*.svg")}
        if shown != set(drawn):
            raise ValueError(f"{path}: shows {shown} and draws {set(drawn)}.")
        PICTURES.mkdir(exist_ok=True)
        for old in PICTURES.glob(f"{name}-*.svg"):
            old.unlink()
        for picture in drawn.values():
            svg = picture.read_text(encoding="utf-8")
            svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
            # Coordinates to a hundredth of a point: half the size, the same picture.
            svg = re.sub(r"(\d+\.\d\d)\d+", r"\1", svg)
            (PICTURES / f"{name}-{picture.name}").write_text(svg, encoding="utf-8")
    path.write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Build the pages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="default: all")
    asked = parser.parse_args(argv).pages or [FIRST, *PAGES]
    if unknown := set(asked) - {FIRST, *PAGES}:
        parser.error(f"no page {sorted(unknown)}: {FIRST}, {', '.join(PAGES)}")
    os.environ.setdefault("MPLBACKEND", "Agg")
    with mpl.rc_context(STYLE):
        names: dict[str, Any] = {}
        first = DOCS / f"{FIRST}.md"
        print(FIRST, file=sys.stderr)
        if FIRST in asked:
            build(FIRST, first, names)
        else:
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                run(first.read_text(encoding="utf-8"), str(first), names)
        cascade = names["cascade"]
        margin = cascade.margin
        for name, page in PAGES.items():
            if name in asked:
                print(name, file=sys.stderr)
                build(name, DOCS / page, dict(names))
                cascade.set_margin(margin)


if __name__ == "__main__":
    main()
