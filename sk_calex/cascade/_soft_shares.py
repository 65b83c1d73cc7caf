"""The share of the soft targets in what a branch learns, chosen by trial."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.calibration._answers import StageTable
from sk_calex.cascade._branch_fitter import BranchFitter, CalibrationProbabilities
from sk_calex.cascade._ensembles import loss_together
from sk_calex.cascade._training_data import Folds, TrainingData
from sk_calex.utils._callbacks import Task, use_task

__all__ = ["ShareJudge", "loss_with_the_last", "try_shares"]


def loss_with_the_last(
    so_far: NDArray[np.float64],
    final: NDArray[np.float64],
    labels: NDArray[np.intp],
    weight: NDArray[np.float64],
) -> float:
    """Compute what a branch leaves to lose at its stage and at the last one.

    Parameters
    ----------
    so_far : ndarray of float64, shape (n_stages, n_samples, n_classes)
        Answers of the branches up to this one, which answer together.
    final : ndarray of float64, shape (n_samples, n_classes)
        Answers of the last stage.
    labels : ndarray of intp, shape (n_samples,)
        True class codes.
    weight : ndarray of float64, shape (n_samples,)
        Sample weights.

    Returns
    -------
    loss : float
        Sum of the two log-losses, each at the weights that fit best.
    """
    last = np.concatenate([so_far, final[None]])
    return loss_together(so_far, labels, weight) + loss_together(last, labels, weight)


class ShareJudge:
    """Judge the trials of a branch by its answers to the calibration samples.

    Parameters
    ----------
    data : TrainingData
        The samples.
    kept : CalibrationProbabilities
        Answers of the branches so far, those of the trial among them.
    ensemble : bool
        Whether stages will answer with those before them.

    Notes
    -----
    Our definition. A branch alone is judged by its log-loss once one temperature is
    fitted: how sharp it is decides nothing, for thresholds are chosen afterwards. In an
    ensemble a branch need not be the best alone, it has to add to the others: the
    log-loss of its own stage and that of the last one, with the branches so far, count
    alike.
    """

    def __init__(
        self, data: TrainingData, kept: CalibrationProbabilities, ensemble: bool
    ) -> None:
        rows = data.folds.calibration
        self._labels, self._weight = data.codes[rows], data.weight[rows]
        self._final = data.final[rows]
        self._kept, self._ensemble = kept, ensemble

    def loss(self, branch: int) -> float:
        """Compute the loss of a branch whose answers were just entered."""
        proba = self._kept.proba
        if not self._ensemble:
            alone = proba[branch : branch + 1]
            return loss_together(alone, self._labels, self._weight)
        so_far = proba[: branch + 1]
        return loss_with_the_last(so_far, self._final, self._labels, self._weight)


def try_shares(
    fitters: Iterable[BranchFitter],
    judge: ShareJudge | None,
    folds: Folds,
    answers: StageTable,
    kept: CalibrationProbabilities | None,
    n_jobs: int | None,
    task: Task,
    name: str,
) -> tuple[BranchFitter, Any]:
    """Train a branch with each share of the soft targets, and keep the best one.

    Parameters
    ----------
    fitters : iterable of BranchFitter
        One for each share. Of equal ones the first is kept.
    judge : ShareJudge or None
        Says how good each is; None where there is one share alone.
    folds : Folds
        Which rows train and calibrate.
    answers : StageTable
        Gets the answers of the best one to the calibration samples.
    kept : CalibrationProbabilities or None
        Gets their probabilities.
    n_jobs : int or None
        Folds trained at once.
    task : Task
        Step of the fit; each training becomes a part of it.
    name : str
        Name of the tap.

    Returns
    -------
    fitter : BranchFitter
        That of the share with the least loss.
    branch : classifier or None
        Trained by it on all training rows; None where samples calibrate out of fold.
    """
    best = _Best()
    for fitter in fitters:
        branch = None
        if folds.out_of_fold:
            with task.part(f"out of fold {name}"):
                fitter.enter_out_of_fold(folds.pairs, answers, n_jobs, kept)
        else:
            with use_task(task.part(f"branch {name}")):
                branch = fitter.fit_on(folds.train)
            fitter.enter_answers(branch, folds.calibration, answers, kept)
        loss = 0.0 if judge is None else judge.loss(fitter.tap)
        best.offer(loss, fitter, branch, answers, kept)
    return best.restore(answers, kept)


class _Best:
    """The trial of a branch with the least loss, and what it answered."""

    def __init__(self) -> None:
        self._loss = np.inf
        self._trial: tuple[BranchFitter, Any] | None = None
        self._answers: StageTable | None = None
        self._proba: NDArray[np.float64] | None = None

    def offer(
        self,
        loss: float,
        fitter: BranchFitter,
        branch: Any,
        answers: StageTable,
        kept: CalibrationProbabilities | None,
    ) -> None:
        """Take a trial whose answers were just entered, if it is the best so far."""
        if self._trial is not None and loss >= self._loss:
            return
        self._loss, self._trial = loss, (fitter, branch)
        self._answers = answers.of_stages([fitter.tap])
        if kept is not None:
            self._proba = kept.proba[fitter.tap].copy()

    def restore(
        self, answers: StageTable, kept: CalibrationProbabilities | None
    ) -> tuple[BranchFitter, Any]:
        """Enter the best trial's answers again; later trials have written over them."""
        assert self._trial is not None  # one trial at least
        assert self._answers is not None
        fitter, branch = self._trial
        answers.fill_stage(fitter.tap, self._answers)
        if kept is not None:
            kept.proba[fitter.tap] = self._proba
        return fitter, branch
