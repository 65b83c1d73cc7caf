"""Choose the thresholds of a fitted cascade anew, without training anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length

from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exits import CalibrationSet
from sk_calex.cascade._inputs import feature_batches, note_precision
from sk_calex.cascade._knob import check_knob
from sk_calex.cascade._runtime import every_answer
from sk_calex.cascade._seen_rows import digest_rows, join_digests
from sk_calex.utils._validation import check_labels, check_sample_weight

__all__ = ["calibrate_on_rows", "calibrate_with_params"]


def calibrate_with_params(cascade: Any, changes: Mapping[str, Any]) -> None:
    """Fit the exit rule again with other parameters of the cascade.

    Parameters
    ----------
    cascade : cascade
        A fitted cascade. Left as it was where the new parameters are refused.
    changes : mapping from str
        New values of its parameters.
    """
    with _restored_after_error(cascade, [*changes, "calibrator_"]):
        for name, value in changes.items():
            setattr(cascade, name, value)
        check_knob(cascade)
        cascade.calibrator_ = cascade._fit_rule(cascade._exit_rule())


def calibrate_on_rows(
    cascade: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None
) -> None:
    """Fit the exit rule again on other samples.

    Parameters
    ----------
    cascade : cascade
        A fitted cascade. Left as it was where the samples are refused.
    X, y, sample_weight
        As of `BaseCascade.recalibrate`.
    """
    labels = check_labels(y)
    unknown = np.setdiff1d(labels, cascade.classes_)
    if len(unknown):
        raise ValueError(
            f"y holds labels that fit did not see: {unknown.tolist()[:5]}. Leave "
            f"them out; the classes are {cascade.classes_.tolist()[:5]}..."
        )
    weight = check_sample_weight(sample_weight, labels)
    answers, reference = _run_for_calibration(cascade, X)
    check_consistent_length(reference, labels)
    codes = np.searchsorted(cascade.classes_, labels)
    names = ["calibration_", "calibrator_", "row_digests_", "_calibrated_amp_"]
    with _restored_after_error(cascade, names):
        cascade.calibration_ = CalibrationSet(
            answers, codes, weight, reference=reference
        )
        cascade.calibrator_ = cascade._fit_rule(cascade._exit_rule())
        cascade.row_digests_ = join_digests(cascade.row_digests_, digest_rows(X))
        note_precision(cascade)


def _run_for_calibration(cascade: Any, X: Any) -> tuple[StageTable, NDArray[np.intp]]:
    """Answers of all stages, and class codes of the last stage by itself."""
    inputs, answers = feature_batches(cascade, X), cascade._answers()
    table = StageTable.empty(len(answers), inputs.n_samples, len(cascade.classes_))
    reference = np.empty(inputs.n_samples, dtype=np.intp)
    for stage, rows, said in every_answer(inputs.batches, answers):
        table.put(stage, rows, said)
        if stage == len(answers) - 1:
            reference[rows] = cascade._codes_of_last_stage(said)
    return table, reference


@contextmanager
def _restored_after_error(cascade: Any, names: list[str]) -> Iterator[None]:
    """Give attributes their old values back where the block raises."""
    before = {name: getattr(cascade, name) for name in names}
    try:
        yield
    except BaseException:  # an interruption, too
        for name, value in before.items():
            setattr(cascade, name, value)
        raise
