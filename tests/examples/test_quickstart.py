"""The quickstart runs offline, and says in words what it measured."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def printed(
    quickstart: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Run the script once; gives what it printed, and its folder."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *parts: lines.append(" ".join(parts)))
        quickstart.main(["--quick", "--output", str(folder)])
    return "\n".join(lines), folder


def test_quickstart_says_what_it_does_and_how_long_it_takes(printed) -> None:
    text, _ = printed
    assert text.startswith("A network that stops early on easy images: under a minute")
    assert re.findall(r"^\[(\d)/4\]", text, re.MULTILINE) == list("1234")
    assert "Next: docs/quickstart.md" in text


def test_quickstart_ends_with_a_sentence_of_what_it_measured(printed) -> None:
    text, _ = printed
    sentence = re.search(
        r"The default, half a point of accuracy at most, is .*\.\nThe cascade saves "
        r"(-?\d+)% of the compute and is ([\d.]+) times as fast here\. It\n"
        r"(loses|gains) ([\d.]+) ± ([\d.]+) points of accuracy: the network has "
        r"([\d.]+)% of the new images right,\nthe cascade ([\d.]+)%\.",
        text,
    )
    assert sentence is not None
    saved, faster, verb, lost, _, plain, cascade = sentence.groups()
    assert int(saved) < 100
    assert float(faster) > 0
    change = float(plain) - float(cascade)
    assert (change >= 0) == (verb == "loses") or abs(change) < 0.1
    assert float(lost) == pytest.approx(abs(change), abs=0.11)


def test_quickstart_certifies_on_images_that_are_not_measured(printed) -> None:
    text, _ = printed
    found = re.search(
        r"Certified on (\d+) images of digits that it has never seen: with 90% "
        r"confidence\nat most 50 points are lost at a margin of (\S+), which saves "
        r"about (-?\d+)%\.",
        text,
    )
    assert found is not None
    assert int(found[1]) == 450
    assert int(found[3]) < 100


def test_quickstart_prints_a_row_for_each_margin(printed, quickstart) -> None:
    text, _ = printed
    rows = re.findall(r"^(0[\d.]*) +([\d.]+)% +(-?\d+)%((?: +\d+%)+)$", text, re.M)
    assert [float(row[0]) for row in rows] == quickstart.MARGINS
    for *_, shares in rows:
        parts = [int(share) for share in re.findall(r"\d+", shares)]
        assert len(parts) == 4
        assert sum(parts) == pytest.approx(100, abs=2)


def test_quickstart_draws_a_picture(printed) -> None:
    _, folder = printed
    with Image.open(folder / "quickstart.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_copies_of_one_digit_are_no_independent_images(quickstart) -> None:
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 100)
    source = np.repeat([7, 3, 9, 4], 100)
    mean, error = quickstart.mean_and_error(values, source)
    assert mean == 0.5
    assert error == pytest.approx(np.std([0, 1, 0, 1], ddof=1) / 2)
    # Where copies differ as much as images, their number counts after all.
    _, error = quickstart.mean_and_error(np.tile([0.0, 1.0], 200), source)
    assert error == 0


def test_seed_of_the_quickstart_rules_its_network(quickstart) -> None:
    class Args:
        quick, seed = True, 3

    X = np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    y = np.arange(64) % 10
    first, again = (quickstart.train_network(X, y, Args).state_dict() for _ in range(2))
    for name, value in first.items():
        torch.testing.assert_close(value, again[name], rtol=0, atol=0)
