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

from sk_calex.backbone._layout import TapLayout
from sk_calex.branches._as_branch import (
    count_target_classes,
    fit_as_branch,
    probabilities_of,
)
from sk_calex.calibration._answers import StageAnswer, StageTable
from sk_calex.calibration._table import CalibrationRule, CalibrationTable, exits_at
from sk_calex.cascade._alignment import (
    effective_sample_size,
    exit_probability,
    survivor_weights,
)
from sk_calex.cascade._content import digest_for
from sk_calex.cascade._profile import TrainingProfile
from sk_calex.cascade._training_data import Folds
from sk_calex.utils._callbacks import NO_TASK, Task, handed, handing
from sk_calex.utils._progress import bar, showing
from sk_calex.utils._validation import as_tensor, check_margins

__all__ = [
    "Alignment",
    "FittedBranches",
    "Problem",
    "fit_branches",
    "n_trainings",
]

_ROWS = 4096


@dataclass(frozen=True)
class Alignment:
    """How training samples are weighted by their chance of reaching a branch."""

    kind: str = "soft"
    margin: float | Sequence[float] = 0.0
    bandwidth: float = 0.1
    mixture: float = 1.0


@dataclass(frozen=True)
class Problem:
    """What is learned, of all rows.

    Features, class codes, weights, the last stage's probabilities, and the branches'
    targets: codes, and probabilities or None.
    """

    features: NDArray[Any]
    layout: TapLayout
    codes: NDArray[np.intp]
    weight: NDArray[np.float64]
    final: NDArray[np.float64]
    targets: NDArray[np.intp]
    soft: NDArray[np.float64] | None
    n_classes: int


@dataclass(frozen=True)
class FittedBranches:
    """Outcome of `fit_branches`."""

    branches: list[Any]
    table: CalibrationTable
    answers: StageTable
    proba: NDArray[np.float64] | None
    effective_sample_sizes: NDArray[np.float64]
    profile: TrainingProfile


def n_trainings(
    n_branches: int, folds: Folds, alignment: Alignment, cross_fit: int | None
) -> int:
    """Steps of `fit_branches`: trainings of a branch, and rounds out of fold."""
    if len(folds.pairs) > 1:
        return 2 * n_branches
    rounds = n_branches - 1 if cross_fit and alignment.kind != "none" else 0
    return n_branches + rounds


def fit_branches(
    problem: Problem,
    templates: Sequence[Any],
    folds: Folds,
    reference: NDArray[np.float64],
    alignment: Alignment,
    rule: CalibrationRule,
    *,
    cross_fit: int | None,
    memory: Memory,
    n_jobs: int | None,
    verbose: int = 0,
    task: Task = NO_TASK,
    keep_proba: bool = False,
) -> FittedBranches:
    """Train and calibrate the branches, one after the other.

    Branch k is finished before branch k + 1 begins: its thresholds at the alignment
    margin say which samples go on, hence what branch k + 1 is trained on. To callbacks
    each training is a part of `task`. With `keep_proba` the result also holds what all
    stages say of the calibration samples.
    """
    n = len(problem.codes)
    train, calibration = folds.train, folds.calibration
    margins = check_margins(alignment.margin, len(templates), "alignment_margin")
    survival = np.ones(n)
    reaching = np.ones(len(calibration), dtype=bool)
    answers = StageTable.empty(len(templates) + 1, n, problem.n_classes)
    answers.put(len(templates), slice(None), StageAnswer(problem.final))
    branches, sizes, weights = [], [], []
    kept = None
    if keep_proba:
        kept = _Kept(len(templates), calibration, problem.n_classes)
    content = digest_for(memory, problem.features, problem.targets, problem.soft)
    for k, template in enumerate(templates):
        weight = np.zeros(n)
        weight[train] = survivor_weights(
            survival[train],
            mixture=alignment.mixture if alignment.kind == "soft" else 1.0,
            sample_weight=problem.weight[train],
        )
        fit_on = _Fitter(problem, template, k, weight, memory, content)
        weights.append(fit_on.weights(train)[train])
        sizes.append(effective_sample_size(weights[-1]))
        name = problem.layout.names[k]
        label = (
            f"branch {k + 1} of {len(templates)} ({name}), "
            f"{sizes[-1]:.0f} of {len(train)} samples"
        )
        with showing(verbose, label):
            if len(folds.pairs) == 1:
                with handing(task.part(f"branch {name}")):
                    branch = fit_on(train)
                fit_on.score(branch, calibration, answers, kept)
                if alignment.kind != "none" and k + 1 < len(templates):
                    if cross_fit:
                        inner = StratifiedKFold(cross_fit)
                        split = inner.split(train, problem.codes[train])
                        pairs = [(train[a], train[b]) for a, b in split]
                        with task.part(f"out of fold {name}"):
                            fit_on.score_out_of_fold(pairs, answers, n_jobs)
                    else:
                        fit_on.score(branch, train, answers)
            else:
                with task.part(f"out of fold {name}"):
                    fit_on.score_out_of_fold(folds.pairs, answers, n_jobs, kept)
                with handing(task.part(f"branch {name}")):
                    branch = fit_on(train)
        branches.append(branch)
        if alignment.kind == "none":
            continue
        so_far = _table(problem, calibration, answers, k + 1, reference)
        found = so_far.branch_thresholds(k, reaching, margins[k], rule)
        reaching &= ~exits_at(so_far.scores[k], so_far.predicted[k], found.thresholds)
        bandwidth = alignment.bandwidth if alignment.kind == "soft" else 0.0
        # Rows that were not asked are not used later either.
        scores = np.nan_to_num(answers.confidence[k])
        tau = found.thresholds[answers.predicted[k]]
        survival *= 1 - exit_probability(scores, tau, bandwidth=bandwidth)
    table = _table(problem, calibration, answers, len(templates), reference)
    profile = TrainingProfile.of(
        problem.codes[train],
        problem.weight[train],
        weights,
        [None, *answers.confidence[: len(templates) - 1, train]],
        problem.n_classes,
    )
    calibration_answers = answers.take(calibration)
    proba = None
    if kept is not None:
        proba = np.concatenate([kept.proba, problem.final[None, calibration]])
    return FittedBranches(
        branches, table, calibration_answers, proba, np.array(sizes), profile
    )


def _table(
    problem: Problem,
    rows: NDArray[np.intp],
    answers: StageTable,
    n_branches: int,
    reference: NDArray[np.float64],
) -> CalibrationTable:
    return CalibrationTable(
        answers.confidence[:n_branches, rows],
        answers.predicted[:n_branches, rows],
        problem.codes[rows],
        problem.weight[rows],
        reference,
        answers.predicted[-1, rows] == problem.codes[rows],
    )


class _Kept:
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


class _Fitter:
    """Fits and scores copies of one branch on rows of one tap."""

    def __init__(
        self,
        problem: Problem,
        template: Any,
        tap: int,
        weight: NDArray[np.float64],
        memory: Memory,
        content: str,
    ) -> None:
        self.block = problem.layout.block(problem.features, tap)
        self.shape, self.tap = problem.layout.shapes[tap], tap
        self.problem, self.template, self.weight = problem, template, weight
        # What is the same for all branches and folds is digested once for all of them.
        known = {"ignore": ["block", "targets", "soft"]}
        known = known if isinstance(memory, Memory) else {}
        self.fit = memory.cache(_fit_branch, **known)
        columns = problem.layout.columns(tap)
        self.content = content, columns.start, columns.stop

    def weights(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Training weights on some rows; rows outside get 0: absent, without a copy."""
        weight = np.zeros_like(self.weight)
        weight[rows] = self.weight[rows]
        present, soft = weight > 0, self.problem.soft
        n_classes = count_target_classes(
            self.template,
            self.problem.targets[present],
            None if soft is None else soft[present],
        )
        if n_classes < 2:
            # Survivors of one class teach nothing: then all rows count alike.
            weight[rows] = self.problem.weight[rows]
        return weight

    def __call__(self, rows: NDArray[np.intp]) -> Any:
        return self.fit(
            self.template,
            self.block,
            self.shape,
            self.problem.targets,
            self.weights(rows),
            self.problem.soft,
            self.content,
        )

    def score(
        self,
        branch: Any,
        rows: NDArray[np.intp],
        answers: StageTable,
        kept: _Kept | None = None,
    ) -> None:
        """Enter what the branch says of some rows."""
        answer = probabilities_of(branch, self.problem.n_classes)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            proba = answer(as_tensor(self.block[part]).reshape(-1, *self.shape))
            answers.put(self.tap, part, StageAnswer(proba))
            if kept is not None:
                kept.put(self.tap, part, proba)

    def score_out_of_fold(
        self,
        pairs: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
        answers: StageTable,
        n_jobs: int | None,
        kept: _Kept | None = None,
    ) -> None:
        every = (delayed(self)(rows) for rows, _ in pairs)
        shown = bar(unit="fold", total=len(pairs))
        # Not every backend of joblib gives results one by one.
        kind = "list" if shown.disable else "generator"
        # One bar over the folds: theirs would run over each other.
        with shown, showing(0, ""), handing(NO_TASK):
            fitted = Parallel(n_jobs, return_as=kind)(every)
            for branch, (_, held) in zip(fitted, pairs, strict=True):
                self.score(branch, held, answers, kept)
                shown.update()


def _fit_branch(
    template: Any,
    block: NDArray[Any],
    shape: tuple[int, ...],
    targets: NDArray[np.intp],
    weight: NDArray[np.float64],
    soft: NDArray[np.float64] | None,
    content: tuple[str, int, int],
) -> Any:
    """Train one branch; `content` stands for the data in the key of a cache."""
    branch, task = clone(template), handed()
    with task.handed_to(branch), task:
        return fit_as_branch(branch, block, shape, targets, weight, soft)
