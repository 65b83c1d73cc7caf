"""The measures of the uncertainty benchmark, on cases worked out by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.special import softmax

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def uncertainty(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("uncertainty")


def test_calibration_error_by_hand(uncertainty: ModuleType) -> None:
    # Two in (0.5, 0.75]: confidence 0.6 on average, half of them right.
    # One in (0.75, 1]: confidence 0.9 and right. 2/3 * 0.1 + 1/3 * 0.1.
    error = uncertainty.expected_calibration_error(
        np.array([0.55, 0.65, 0.9]), np.array([True, False, True]), n_bins=4
    )
    assert error == pytest.approx(0.1)


def test_calibration_error_counts_full_confidence(uncertainty: ModuleType) -> None:
    error = uncertainty.expected_calibration_error(np.ones(4), np.zeros(4, bool))
    assert error == pytest.approx(1)


def test_risk_coverage_area_by_hand(uncertainty: ModuleType) -> None:
    # From the most confident: right, wrong, right. Errors 0, 1/2, 1/3.
    area = uncertainty.area_under_risk_coverage(
        np.array([0.2, 0.9, 0.5]), np.array([True, True, False])
    )
    assert area == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


def test_temperature_is_found_where_it_is_known(uncertainty: ModuleType) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    honest = softmax(logits, axis=1)
    y = (honest.cumsum(axis=1) > rng.random((len(honest), 1))).argmax(axis=1)
    overconfident = softmax(3 * logits, axis=1)
    assert uncertainty.find_temperature(overconfident, y) == pytest.approx(3, rel=0.05)


def test_temperature_leaves_answers_and_ranks_of_two_classes(
    uncertainty: ModuleType,
) -> None:
    rng = np.random.default_rng(1)
    proba = rng.dirichlet([1, 1], 300)
    y = (rng.random(300) < proba[:, 1]).astype(np.int64)
    scaled = softmax(np.log(proba) / 2, axis=1)
    before, after = (uncertainty.measures(p, y) for p in (proba, scaled))
    for name in ("auroc", "aurc", "accuracy"):
        assert before[name] == pytest.approx(after[name])
    assert before["ece"] != pytest.approx(after["ece"])
