"""Fit copies of one branch on some rows of the training data, and ask them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from joblib import Memory, Parallel, delayed
from numpy.typing import NDArray
from sklearn.base import clone
from torch import Tensor

from sk_calex.branches._as_branch import (
    count_target_classes,
    fit_as_branch,
    probabilities_of,
    share_soft_targets,
)
from sk_calex.branches._soft_targets import ProbabilityRows, SoftTargets
from sk_calex.calibration._answers import StageAnswer, StageTable
from sk_calex.cascade._training_data import TrainingData
from sk_calex.utils._callbacks import NO_TASK, current_task, use_task
from sk_calex.utils._parallel import for_workers, received
from sk_calex.utils._progress import bar, showing
from sk_calex.utils._rows import as_rows, take_rows

__all__ = ["BranchFitter", "CalibrationProbabilities", "soft_targets"]

_ROWS = 4096


def soft_targets(final: ProbabilityRows, labels: NDArray[np.intp]) -> SoftTargets:
    """Take the last stage's probabilities over the classes of y alone, to imitate.

    A branch cannot learn a class without training rows, and never predicts it.
    """
    present = np.isin(np.arange(final.shape[1]), labels)
    return SoftTargets(final, labels, None if present.all() else present)


class CalibrationProbabilities:
    """Probabilities of the branches on the calibration samples, which are sorted."""

    def __init__(
        self, n_branches: int, calibration: NDArray[np.intp], n_classes: int
    ) -> None:
        self.proba = np.empty((n_branches, len(calibration), n_classes))
        self._rows = calibration

    def put(
        self, branch: int, rows: NDArray[np.intp], proba: NDArray[np.float64]
    ) -> None:
        """Enter the probabilities of a branch for some rows."""
        self.proba[branch, np.searchsorted(self._rows, rows)] = proba


class BranchFitter:
    """Fit copies of one branch on rows of one tap, and enter what they answer.

    `alpha` is the share of the soft targets in what is learned, the labels have the
    rest; None leaves it to the branch.
    """

    def __init__(
        self,
        data: TrainingData,
        template: Any,
        tap: int,
        weight: NDArray[np.float64],
        labels: NDArray[np.intp],
        soft: ProbabilityRows | None,
        memory: Memory,
        content: str,
        alpha: float | None = None,
    ) -> None:
        self.data, self.tap, self.weight, self.labels = data, tap, weight, labels
        self.template, self.soft = share_soft_targets(template, labels, soft, alpha)
        self.alpha = alpha
        self.block = data.layout.block(data.features, tap)
        self.shape = data.layout.shapes[tap]
        # What is the same for all branches and folds is digested once for all of them.
        ignored = {"ignore": ["block", "labels", "soft"]}
        ignored = ignored if isinstance(memory, Memory) else {}
        self.fit = memory.cache(_fit_one_branch, **ignored)
        columns = data.layout.columns(tap)
        self.content = content, columns.start, columns.stop, alpha

    def weights_on(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return training weights on some rows; the others get 0, which is absence."""
        weight = np.zeros_like(self.weight)
        weight[rows] = self.weight[rows]
        used = np.flatnonzero(weight > 0)
        labels = self.labels[used]
        if count_target_classes(self.template, labels, self.soft, used) < 2:
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

    def enter_answers(
        self,
        branch: Any,
        rows: NDArray[np.intp],
        answers: StageTable,
        kept: CalibrationProbabilities | None = None,
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

    def enter_out_of_fold(
        self,
        pairs: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
        answers: StageTable,
        n_jobs: int | None,
        kept: CalibrationProbabilities | None = None,
    ) -> None:
        """Enter answers of branches that were trained without the rows."""
        call = for_workers(self.fit_on)
        every = (delayed(call)(rows) for rows, _ in pairs)
        shown = bar(unit="fold", total=len(pairs))
        # Not every backend of joblib gives results one by one.
        kind = "list" if shown.disable else "generator"
        # One bar over the folds: theirs would run over each other.
        with shown, showing(0, ""), use_task(NO_TASK):
            fitted = map(received, Parallel(n_jobs, return_as=kind)(every))
            for branch, (_, held) in zip(fitted, pairs, strict=True):
                self.enter_answers(branch, held, answers, kept)
                shown.update()


def _fit_one_branch(
    template: Any,
    block: Any,
    shape: tuple[int, ...],
    labels: NDArray[np.intp],
    weight: NDArray[np.float64],
    soft: ProbabilityRows | None,
    content: tuple[str, int, int, float | None],
) -> Any:
    """Train one branch; `content` stands for the data in the key of a cache."""
    branch, task = clone(template), current_task()
    with task.owned_by(branch), task:
        return fit_as_branch(branch, block, shape, labels, weight, soft)
