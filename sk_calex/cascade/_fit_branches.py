"""Branches trained in cascade order, each on the samples that will reach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from joblib import Memory
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from sk_calex.calibration._answers import StageAnswer, StageTable
from sk_calex.calibration._calibrator import SurvivorThresholdCalibrator
from sk_calex.calibration._exit_rule import CalibrationSet
from sk_calex.calibration._thresholds import exits_at
from sk_calex.cascade._alignment import (
    SurvivorAlignment,
    TrainingProfile,
    effective_sample_size,
)
from sk_calex.cascade._branch_fitter import (
    BranchFitter,
    CalibrationProbabilities,
    soft_targets,
)
from sk_calex.cascade._fit_key import digest_for
from sk_calex.cascade._soft_shares import ShareJudge, try_shares
from sk_calex.cascade._training_data import TrainingData
from sk_calex.utils._callbacks import NO_TASK, Task, use_task
from sk_calex.utils._progress import showing

__all__ = ["FittedBranches", "count_trainings", "fit_branches"]

_ROWS = 4096


@dataclass(frozen=True)
class FittedBranches:
    """Outcome of `fit_branches`.

    Parameters
    ----------
    branches : list of classifiers
        The trained branches.
    answers : StageTable
        Answers of all stages to the calibration samples.
    proba : ndarray of float64, shape (n_stages, n_samples, n_classes), or None
        Their probabilities; only with `ensemble`.
    effective_sample_sizes : ndarray of float64, shape (n_branches,)
        Of the training weights of each branch.
    profile : TrainingProfile
        Those weights by class and by confidence.
    alphas : list of float or None
        Share of the soft targets that each branch was trained with; None where it is
        the branch's own.
    """

    branches: list[Any]
    answers: StageTable
    proba: NDArray[np.float64] | None
    effective_sample_sizes: NDArray[np.float64]
    profile: TrainingProfile
    alphas: list[float | None]


def count_trainings(
    alphas: Sequence[Sequence[float | None]],
    out_of_fold: bool,
    alignment: SurvivorAlignment,
) -> int:
    """Count the steps of `fit_branches`: trainings of a branch, rounds out of fold."""
    n_branches = len(alphas)
    n_tried = sum(map(len, alphas))
    if out_of_fold:
        return n_tried + n_branches
    cross_fit = alignment.cross_fit and alignment.kind != "none"
    return n_tried + (n_branches - 1 if cross_fit else 0)


def fit_branches(
    data: TrainingData,
    templates: Sequence[Any],
    targets: str,
    alphas: Sequence[Sequence[float | None]],
    alignment: SurvivorAlignment,
    margins: NDArray[np.float64],
    rule: SurvivorThresholdCalibrator,
    *,
    memory: Memory,
    n_jobs: int | None,
    verbose: int = 0,
    task: Task = NO_TASK,
    ensemble: bool = False,
) -> FittedBranches:
    """Train and calibrate the branches, one after the other.

    Branch k is finished before branch k + 1 begins: its thresholds at the alignment
    margin say which samples go on, hence what branch k + 1 is trained on.

    Parameters
    ----------
    data : TrainingData
        What is learned, and which rows train and calibrate.
    templates : sequence of classifiers
        One for each tap, not fitted.
    targets : {"soft", "argmax", "labels"}
        What branches learn: the last stage's probabilities, its answers, or the labels.
    alphas : sequence of sequences of float or None
        For each tap the shares of the soft targets to try, the labels having the rest;
        `ShareJudge` says which is kept. None leaves the share to the branch.
    alignment : SurvivorAlignment
        How training rows are weighted.
    margins : ndarray of float64, shape (n_branches,)
        Margins of the thresholds from which the weights are made.
    rule : SurvivorThresholdCalibrator
        The other settings of these thresholds.
    memory : joblib.Memory
        Cache of fitted branches.
    n_jobs : int or None
        Folds trained at once.
    verbose : int, default=0
        Whether to show bars.
    task : Task, default=NO_TASK
        Step of the fit; each training becomes a part of it.
    ensemble : bool, default=False
        Whether stages will answer with those before them.

    Returns
    -------
    fitted : FittedBranches
        The branches, and their answers to the calibration samples.
    """
    n, folds, n_branches = len(data.codes), data.folds, len(templates)
    train, calibration = folds.train, folds.calibration
    survival = np.ones(n)
    reaching = np.ones(len(calibration), dtype=bool)
    answers = StageTable.empty(n_branches + 1, n, data.n_classes)
    for start in range(0, n, _ROWS):  # a few at a time: signals need several copies
        part = slice(start, min(start + _ROWS, n))
        answers.put(n_branches, part, StageAnswer(data.final[part]))
    labels = answers.predicted[n_branches] if targets == "argmax" else data.codes
    soft = soft_targets(data.final, labels) if targets == "soft" else None
    branches, sizes, weights, chosen = [], [], [], []
    kept = None
    are_tried = any(len(shares) > 1 for shares in alphas)
    if ensemble or are_tried:
        kept = CalibrationProbabilities(n_branches, calibration, data.n_classes)
    judge = ShareJudge(data, kept, ensemble) if kept is not None and are_tried else None
    content = digest_for(memory, data.features, labels, soft)
    for k, template in enumerate(templates):
        weight = np.zeros(n)
        weight[train] = alignment.weigh(survival[train], data.weight[train])
        make_fitter = partial(
            BranchFitter, data, template, k, weight, labels, soft, memory, content
        )
        first = make_fitter(alphas[k][0])
        weights.append(first.weights_on(train)[train])
        sizes.append(effective_sample_size(weights[-1]))
        name = data.layout.names[k]
        label = (
            f"branch {k + 1} of {n_branches} ({name}), "
            f"{sizes[-1]:.0f} of {len(train)} samples"
        )
        weighs_on = alignment.kind != "none" and k + 1 < n_branches
        with showing(verbose, label):
            others = map(make_fitter, alphas[k][1:])
            fitter, branch = try_shares(
                chain([first], others), judge, folds, answers, kept, n_jobs, task, name
            )
            if branch is None:
                with use_task(task.part(f"branch {name}")):
                    branch = fitter.fit_on(train)
            elif weighs_on and alignment.cross_fit:
                inner = StratifiedKFold(alignment.cross_fit)
                split = inner.split(train, data.codes[train])
                pairs = [(train[a], train[b]) for a, b in split]
                with task.part(f"out of fold {name}"):
                    fitter.enter_out_of_fold(pairs, answers, n_jobs)
            elif weighs_on:
                fitter.enter_answers(branch, train, answers)
        branches.append(branch)
        chosen.append(fitter.alpha)
        if not weighs_on:
            continue
        given = CalibrationSet(
            answers.take(calibration), data.codes[calibration], data.weight[calibration]
        )
        tau = rule.branch_thresholds(given, k, reaching, margins[k]).thresholds
        said = given.answers
        reaching &= ~exits_at(said.confidence[k], said.predicted[k], tau)
        # Rows that were not scored have no confidence, and are not used later either.
        scores = np.nan_to_num(answers.confidence[k])
        survival *= 1 - alignment.exit_probability(scores, tau[answers.predicted[k]])
    profile = TrainingProfile.of(
        data.codes[train],
        data.weight[train],
        weights,
        [None, *answers.confidence[: n_branches - 1, train]],
        data.n_classes,
    )
    proba = None
    if ensemble and kept is not None:
        proba = np.concatenate([kept.proba, data.final[calibration][None]])
    return FittedBranches(
        branches, answers.take(calibration), proba, np.array(sizes), profile, chosen
    )
