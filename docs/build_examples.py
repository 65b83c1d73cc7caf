"""Make the pages of the examples: run each script, keep what it printed and drew.

    python docs/build_examples.py                     # all of them, some minutes
    python docs/build_examples.py token_features      # one

A page shows its script as it is now. What the script printed and drew is kept in
``docs/examples``, with a digest of the sources and of the library's defaults that it
came from: the tests compare it, so that no output outlives them. Outputs hold no paths
and no times, but for those of the quickstart and of the tabular cascade: they come out
the same again with the same versions of the libraries.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import sk_calex

ROOT = Path(__file__).parents[1]
EXAMPLES, PAGES = ROOT / "examples", ROOT / "docs" / "examples"

UNDITHERED = Image.Dither.NONE
LARGEST_PICTURE = 90_000  # bytes

# In the order of the navigation.
NAMES = (
    "quickstart",
    "pipeline_grid_search",
    "budgeted_margin",
    "transfer_final_estimator",
    "timm_model",
    "hugging_face_models",
    "small_model_first",
    "tabular_cascade",
    "token_features",
    "dataset_on_disk",
    "survivors_and_weights",
)
ALTERNATIVES = {
    "quickstart": {"quickstart": "Accuracy against compute saved, and images by stage"},
    "budgeted_margin": {
        "budgeted_margin": "Accuracy against FLOPs saved at all margins, out of fold"
    },
    "small_model_first": {
        "small_model_first": "The cascade of both networks between the two alone"
    },
    "tabular_cascade": {
        "tabular_cascade": "Accuracy against the time saved, and rows by classifier"
    },
    "pipeline_grid_search": {
        "pipeline_grid_search": "Accuracy and FLOPs saved over the margin"
    },
    "transfer_final_estimator": {
        "transfer_final_estimator": "Share of the digits answered at each depth"
    },
    "timm_model": {"timm_model": "Accuracy against FLOPs saved, by margin"},
    "hugging_face_models": {
        "hugging_face_models": "Accuracy against FLOPs saved, of a BERT and of a ViT"
    },
    "token_features": {
        "token_features": "Accuracy against FLOPs saved, for three kinds of branches"
    },
    "dataset_on_disk": {
        "dataset_on_disk": "Rows computed and rows read by each of four fits"
    },
    "survivors_and_weights": {
        "survivors_depths": "Share of the test images answered at each depth, by class",
        "survivors_thresholds": "Precision over the threshold for each class",
        "survivors_weights": "Weighted training rows and survivors, by class",
    },
}


def digest(name: str) -> str:
    """Give a digest of what an example's output comes from."""
    content = (EXAMPLES / f"{name}.py").read_bytes()
    return hashlib.sha256(content + defaults().encode()).hexdigest()[:16]


def defaults() -> str:
    """Give the defaults of what the examples are made of."""
    parts = (
        sk_calex.BranchClassifier,
        sk_calex.CascadeClassifier,
        sk_calex.FrozenBackbone,
        sk_calex.MarginSearchCV,
        sk_calex.PrototypePoolingClassifier,
    )
    return "\n".join(
        f"{part.__name__}.{name}={parameter.default!r}"
        for part in parts
        for name, parameter in sorted(inspect.signature(part).parameters.items())
        # A parameter that is new and off changes no output: its page stays as it is.
        if parameter.default is not inspect.Parameter.empty and parameter.default
    )


def words(name: str) -> tuple[str, str]:
    """Give the first line of a script's docstring, and the rest without the command."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(source))
    assert doc is not None
    title, _, rest = doc.partition("\n")
    return title.rstrip("."), rest.strip("\n")


def page(name: str, printed: str, pictures: list[str]) -> str:
    """Give the text of an example's page."""
    title, rest = words(name)
    shown = [
        # A link, to see it larger on a phone.
        f"[![{ALTERNATIVES[name][picture]}]({picture}.png)]({picture}.png)\n"
        for picture in pictures
    ]
    output = ["```text", printed.rstrip("\n"), "```"]
    if name == "quickstart":  # docs/quickstart.md shows it, too
        start, end = (f"<!-- --8<-- [{mark}:output] -->" for mark in ("start", "end"))
        output = [start, *output, end]
    return "\n".join(
        [
            f"<!-- By docs/build_examples.py, sources and defaults {digest(name)}. -->",
            "",
            f"# {title}",
            "",
            rest,
            "",
            "## What it prints",
            "",
            *output,
            "",
            *shown,
            "## The script",
            "",
            f"`examples/{name}.py` needs nothing from this repository but the package: "
            "copy it and change it.",
            "",
            "``` { .python }",
            f'--8<-- "examples/{name}.py"',
            "```",
            "",
        ]
    )


def build(name: str) -> None:
    """Run an example in a process of its own, and write its page."""
    with tempfile.TemporaryDirectory() as folder:
        # Without torch's cache of weights: pages do not depend on what lies there.
        environment = os.environ | {"MPLBACKEND": "Agg", "TORCH_HOME": folder}
        printed = subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py", "--output", folder],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        # Where a reader finds the picture, and not how busy this machine was.
        printed = printed.replace(folder, "examples/output")
        printed = re.sub(r"^\(\d+ s\)\n", "", printed, flags=re.MULTILINE)
        printed = re.sub(r"[\d.]+ times as fast", "x times as fast", printed)
        pictures = []
        for picture in ALTERNATIVES.get(name, {}):
            drawn, kept = (to / f"{picture}.png" for to in (Path(folder), PAGES))
            # A palette is enough for plots, and a third of the bytes; one of fewer
            # colours for those that hold images.
            for colors in (128, 48):
                with Image.open(drawn) as image:
                    small = image.convert("RGB").quantize(colors, dither=UNDITHERED)
                small.save(kept, optimize=True)
                if kept.stat().st_size < LARGEST_PICTURE:
                    break
            pictures.append(picture)
    (PAGES / f"{name}.md").write_text(page(name, printed, pictures), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Build the pages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    asked = parser.parse_args(argv).names or NAMES
    if unknown := set(asked) - set(NAMES):
        parser.error(f"no example is called {sorted(unknown)}: {', '.join(NAMES)}")
    PAGES.mkdir(exist_ok=True)
    for name in asked:
        print(name, flush=True)
        build(name)


if __name__ == "__main__":
    main()
