"""Run a fitted cascade over samples: with exits, or every stage on every sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exit_rule import Policy, first_exits
from sk_calex.cascade._fit_cache import recall_table
from sk_calex.cascade._inputs import feature_batches, input_batches
from sk_calex.cascade._runtime import every_answer, run_cascade, tabulate

__all__ = [
    "predict_codes",
    "run_all_stages",
    "run_with_exits",
    "stage_probabilities",
    "stage_table",
]


def run_with_exits(
    cascade: Any, X: Any, rule: Policy
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Compute the probabilities of the stage that answers, and its depth.

    Parameters
    ----------
    cascade : cascade
        A fitted cascade.
    X : array, tensor or Dataset of shape (n_samples, ...)
        Samples.
    rule : Policy
        The exit rule, read once: another thread may move the cascade meanwhile.

    Returns
    -------
    proba : ndarray of float64, shape (n_samples, n_classes)
        Probabilities.
    depth : ndarray of intp, shape (n_samples,)
        Index of the stage; the number of branches for the last.
    """
    inputs = input_batches(cascade, X)
    runs = [*cascade._running_heads(rule), True]
    answers = [
        answer if runs[k] else None for k, answer in enumerate(cascade._answers())
    ]
    n_samples, n_classes = inputs.n_samples, len(cascade.classes_)
    with inputs.mode():
        return run_cascade(inputs.batches, answers, rule, n_samples, n_classes)


def predict_codes(
    cascade: Any, X: Any, rule: Policy
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Compute class codes and depths; recalled where a search scored on X before."""
    table = recall_table(cascade, X, run_all_stages)
    if table is None:
        proba, depth = run_with_exits(cascade, X, rule)
        return proba.argmax(axis=1), depth
    depth = first_exits(rule, table)
    return table.predicted[depth, np.arange(len(depth))], depth


def run_all_stages(cascade: Any, X: Any) -> StageTable:
    """Tabulate the answers of all stages to all samples, without exits."""
    inputs, n_classes = feature_batches(cascade, X), len(cascade.classes_)
    return tabulate(inputs.batches, cascade._answers(), inputs.n_samples, n_classes)


def stage_table(cascade: Any, X: Any) -> StageTable:
    """Return `run_all_stages`, recalled where a search saw X before."""
    table = recall_table(cascade, X, run_all_stages)
    return run_all_stages(cascade, X) if table is None else table


def stage_probabilities(cascade: Any, X: Any) -> NDArray[np.float64]:
    """Compute the probabilities of all stages: (n_stages, n_samples, n_classes)."""
    inputs, answers = feature_batches(cascade, X), cascade._answers()
    proba = np.empty((len(answers), inputs.n_samples, len(cascade.classes_)))
    for stage, rows, said in every_answer(inputs.batches, answers):
        proba[stage, rows] = said.proba
    return proba
