"""The page on reliability says how much is tested, and is right."""

from __future__ import annotations

import json
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
    STRESS_OPERATIONS,
)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "background" / "reliability.md"
RESULTS = ROOT / "examples" / "benchmarks" / "results"
STRESS = json.loads((RESULTS / "store_stress.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "claim",
    [
        f"{N_FLIPS} random places",
        f"{N_KILLS} processes",
        f"{N_WRITERS} processes",
        f"{N_CRAFTED} crafted",
        f"{STRESS_OPERATIONS} operations of 8 processes",
        f"{STRESS['operations']:,} operations, {STRESS['by_operation']['repair']:,} "
        f"repairs among them, and {STRESS['kills']:,} kills",
        "0 wrong rows, 0 lost rows and 0 undocumented exceptions",
        "0 damaged files, 0 orphans and 0 hidden folders",
        f"{MACHINE_RUNS} sequences of up to {MACHINE_STEPS} operations",
    ],
)
def test_page_states_the_right_counts(claim):
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert claim in text


def test_recorded_stress_run_was_long_and_found_nothing():
    assert STRESS["operations"] >= 30_000
    assert set(STRESS["found"].values()) == {0}


def test_page_names_existing_tests():
    named = re.findall(r"`(test_\w+\.py)`", PAGE.read_text(encoding="utf-8"))
    here = {path.name for path in Path(__file__).parents[1].rglob("test_*")}
    assert named
    assert set(named) <= here
