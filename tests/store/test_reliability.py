"""The page on reliability says how much is tested, and is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ._helpers import (
    MACHINE_RUNS,
    MACHINE_STEPS,
    N_CRAFTED,
    N_FLIPS,
    N_KILLS,
    N_WRITERS,
)

PAGE = Path(__file__).parents[2] / "docs" / "background" / "reliability.md"


@pytest.mark.parametrize(
    "claim",
    [
        f"{N_FLIPS} random places",
        f"{N_KILLS} processes",
        f"{N_WRITERS} processes",
        f"{N_CRAFTED} crafted",
        f"{MACHINE_RUNS} sequences of up to {MACHINE_STEPS} operations",
    ],
)
def test_the_page_counts_right(claim):
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert claim in text


def test_the_tests_that_the_page_names_are_there():
    named = re.findall(r"`(test_\w+\.py)`", PAGE.read_text(encoding="utf-8"))
    here = {path.name for path in Path(__file__).parents[1].rglob("test_*")}
    assert named
    assert set(named) <= here
