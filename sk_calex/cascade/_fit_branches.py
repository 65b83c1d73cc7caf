"""Branches trained in cascade order, each on the samples that will reach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import Memory, Parallel, delayed
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from sk_calex.branches._as_branch import (
    count_target_classes,
    fit_as_branch,
    probabilities_of,
)
from sk_calex.calibration._answers import StageAnswer, StageTable
from sk_calex.calibration._calibrator import SurvivorThresholdCalibrator
from sk_calex.calibration._exit_rule import CalibrationSet
from sk_calex.calibration._thresholds import exits_at
from sk_calex.cascade._alignment import (
    SurvivorAlignment,
    TrainingProfile,
    effective_sample_size,
)
from sk_calex.cascade._fit_key import digest_for
from sk_calex.cascade._training_data import TrainingData
from sk_calex.utils._callbacks import NO_TASK, Task, current_task, use_task
from sk_calex.utils._parallel import for_workers, received
from sk_calex.utils._progress import bar, showing
from sk_calex.utils._validation import as_rows, take_rows

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
        Their probabilities; only with `keep_proba`.
    effective_sample_sizes : ndarray of float64, shape (n_branches,)
        Of the training weights of each branch.
    profile : TrainingProfile
        Those weights by class and by confidence.
    """

    branches: list[Any]
    answers: StageTable
    proba: NDArray[np.float64] | None
    effective_sample_sizes: NDArray[np.float64]
    profile: TrainingProfile


def count_trainings(
    n_branches: int, out_of_fold: bool, alignment: SurvivorAlignment
) -> int:
    """Count the steps of `fit_branches`: trainings of a branch, rounds out of fold."""
    if out_of_fold:
        return 2 * n_branches
    cross_fit = alignment.cross_fit and alignment.kind != "none"
    return n_branches + (n_branches - 1 if cross_fit else 0)


def fit_branches(
    data: TrainingData,
    templates: Sequence[Any],
    targets: str,
    alignment: SurvivorAlignment,
    margins: NDArray[np.float64],
    rule: SurvivorThresholdCalibrator,
    *,
    memory: Memory,
    n_jobs: int | None,
    verbose: int = 0,
    task: Task = NO_TASK,
    keep_proba: bool = False,
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
    keep_proba : bool, default=False
        Whether to keep the probabilities of all stages on the calibration samples.

    Returns
    -------
    fitted : FittedBranches
        The branches, and their answers to the calibration samples.
    """
    n, folds, n_branches = len(data.codes), data.folds, len(templates)
    train, calibration = folds.train, folds.calibration
    labels = data.final.argmax(axis=1) if targets == "argmax" else data.codes
    soft = _soft_targets(data.final, labels) if targets == "soft" else None
    survival = np.ones(n)
    reaching = np.ones(len(calibration), dtype=bool)
    answers = StageTable.empty(n_branches + 1, n, data.n_classes)
    answers.put(n_branches, slice(None), StageAnswer(data.final))
    branches, sizes, weights = [], [], []
    kept = None
    if keep_proba:
        kept = _CalibrationProbabilities(n_branches, calibration, data.n_classes)
    content = digest_for(memory, data.features, labels, soft)
    for k, template in enumerate(templates):
        weight = np.zeros(n)
        weight[train] = alignment.weigh(survival[train], data.weight[train])
        fitter = _BranchFitter(data, template, k, weight, labels, soft, memory, content)
        weights.append(fitter.weights_on(train)[train])
        sizes.append(effective_sample_size(weights[-1]))
        name = data.layout.names[k]
        label = (
            f"branch {k + 1} of {n_branches} ({name}), "
            f"{sizes[-1]:.0f} of {len(train)} samples"
        )
        weighs_on = alignment.kind != "none" and k + 1 < n_branches
        with showing(verbose, label):
            if folds.out_of_fold:
                with task.part(f"out of fold {name}"):
                    fitter.score_out_of_fold(folds.pairs, answers, n_jobs, kept)
                with use_task(task.part(f"branch {name}")):
                    branch = fitter.fit_on(train)
            else:
                with use_task(task.part(f"branch {name}")):
                    branch = fitter.fit_on(train)
                fitter.score(branch, calibration, answers, kept)
                if weighs_on and alignment.cross_fit:
                    inner = StratifiedKFold(alignment.cross_fit)
                    split = inner.split(train, data.codes[train])
                    pairs = [(train[a], train[b]) for a, b in split]
                    with task.part(f"out of fold {name}"):
                        fitter.score_out_of_fold(pairs, answers, n_jobs)
                elif weighs_on:
                    fitter.score(branch, train, answers)
        branches.append(branch)
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
    if kept is not None:
        proba = np.concatenate([kept.proba, data.final[None, calibration]])
    return FittedBranches(
        branches, answers.take(calibration), proba, np.array(sizes), profile
    )


def _soft_targets(
    final: NDArray[np.float64], labels: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Take the last stage's probabilities over the classes of y alone, to imitate.

    A branch cannot learn a class without training rows, and never predicts it.
    """
    present = np.isin(np.arange(final.shape[1]), labels)
    if present.all():
        return final
    soft = np.where(present, final, 0.0)
    total = soft.sum(axis=1, keepdims=True)
    certain = np.eye(final.shape[1])[labels]
    return np.where(total > 0, soft / np.maximum(total, np.finfo(float).tiny), certain)


class _CalibrationProbabilities:
    """Probabilities of the branches on the calibration samples, which are sorted."""

    def __init__(
        self, n_branches: int, calibration: NDArray[np.intp], n_classes: int
    ) -> None:
        self.proba = np.empty((n_branches, len(calibration), n_classes))
        self._rows = calibration

    def put(
        self, branch: int, rows: NDArray[np.intp], proba: NDArray[np.float64]
    ) -> None:
        self.proba[branch, np.searchsorted(self._rows, rows)] = proba


class _BranchFitter:
    """Fits and scores copies of one branch on rows of one tap."""

    def __init__(
        self,
        data: TrainingData,
        template: Any,
        tap: int,
        weight: NDArray[np.float64],
        labels: NDArray[np.intp],
        soft: NDArray[np.float64] | None,
        memory: Memory,
        content: str,
    ) -> None:
        self.data, self.template, self.tap = data, template, tap
        self.weight, self.labels, self.soft = weight, labels, soft
        self.block = data.layout.block(data.features, tap)
        self.shape = data.layout.shapes[tap]
        # What is the same for all branches and folds is digested once for all of them.
        ignored = {"ignore": ["block", "labels", "soft"]}
        ignored = ignored if isinstance(memory, Memory) else {}
        self.fit = memory.cache(_fit_one_branch, **ignored)
        columns = data.layout.columns(tap)
        self.content = content, columns.start, columns.stop

    def weights_on(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return training weights on some rows; the others get 0, which is absence."""
        weight = np.zeros_like(self.weight)
        weight[rows] = self.weight[rows]
        used = weight > 0
        soft = None if self.soft is None else self.soft[used]
        if count_target_classes(self.template, self.labels[used], soft) < 2:
            # Survivors of one class teach nothing: then all rows count alike.
            weight[rows] = self.data.weight[rows]
        return weight

    def fit_on(self, rows: NDArray[np.intp]) -> Any:
        """Train a copy of the branch on some rows."""
        return self.fit(
            self.template,
            self.block,
            self.shape,
            self.labels,
            self.weights_on(rows),
            self.soft,
            self.content,
        )

    def score(
        self,
        branch: Any,
        rows: NDArray[np.intp],
        answers: StageTable,
        kept: _CalibrationProbabilities | None = None,
    ) -> None:
        """Enter the answers of a trained branch to some rows."""
        probabilities = probabilities_of(branch, self.data.n_classes)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            features = as_rows(take_rows(self.block, part))
            if isinstance(features, Tensor):
                features = features.reshape(-1, *self.shape)
            proba = probabilities(features)
            answers.put(self.tap, part, StageAnswer(proba))
            if kept is not None:
                kept.put(self.tap, part, proba)

    def score_out_of_fold(
        self,
        pairs: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
        answers: StageTable,
        n_jobs: int | None,
        kept: _CalibrationProbabilities | None = None,
    ) -> None:
        """Enter the answers of branches that were trained without the rows."""
        call = for_workers(self.fit_on)
        every = (delayed(call)(rows) for rows, _ in pairs)
        shown = bar(unit="fold", total=len(pairs))
        # Not every backend of joblib gives results one by one.
        kind = "list" if shown.disable else "generator"
        # One bar over the folds: theirs would run over each other.
        with shown, showing(0, ""), use_task(NO_TASK):
            fitted = map(received, Parallel(n_jobs, return_as=kind)(every))
            for branch, (_, held) in zip(fitted, pairs, strict=True):
                self.score(branch, held, answers, kept)
                shown.update()


def _fit_one_branch(
    template: Any,
    block: Any,
    shape: tuple[int, ...],
    labels: NDArray[np.intp],
    weight: NDArray[np.float64],
    soft: NDArray[np.float64] | None,
    content: tuple[str, int, int],
) -> Any:
    """Train one branch; `content` stands for the data in the key of a cache."""
    branch, task = clone(template), current_task()
    with task.handed_to(branch), task:
        return fit_as_branch(branch, block, shape, labels, weight, soft)
