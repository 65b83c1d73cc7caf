"""Stages that answer together with those before them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sk_calex.branches._solvers import lbfgs_loop
from sk_calex.calibration._answers import StageAnswer, StageTable
from sk_calex.calibration._exits import CalibrationSet
from sk_calex.cascade._runtime import Answer
from sk_calex.cascade._training_data import TrainingData
from sk_calex.utils._codec import savable
from sk_calex.utils._modes import trainable
from sk_calex.utils._validation import softmax64

__all__ = [
    "Ensembles",
    "LogMean",
    "calibration_of_stages",
    "fit_log_mean",
    "loss_together",
]

_ITERATIONS = 100
# A classifier may give a class no probability at all; the mean must stay finite.
_LEAST = 1e-12
# Holds the exponents at 0 to all digits that matter.
_MOST_DECAY = 1e6


class LogMean(nn.Module):
    """Weighted geometric mean of some answers, times a class bias.

    On log-probabilities (n, k, C): ``(1/k) sum_j e^{w_j} log p_j + b``, b = 0 without
    `shift`.
    """

    def __init__(self, n_answers: int, n_classes: int, *, shift: bool = True) -> None:
        super().__init__()
        # Zero: the plain geometric mean.
        self.exponents = nn.Parameter(torch.zeros(n_answers, dtype=torch.float64))
        none = torch.zeros(n_classes, dtype=torch.float64)
        self.shift = nn.Parameter(none, requires_grad=shift)

    def forward(self, log_proba: Tensor) -> Tensor:
        """Compute the logits of the mean, shape (n, C)."""
        weight = self.exponents.exp() / len(self.exponents)
        return torch.einsum("nkc,k->nc", log_proba, weight) + self.shift


def fit_log_mean(
    mean: LogMean,
    log_proba: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    weight_decay: float,
) -> float:
    """Fit a mean in place by full-batch L-BFGS; return its cross-entropy on labels."""
    # The smallest weights would lose their digits, or vanish, in the products below.
    weight = weight / weight.max()

    def loss() -> Tensor:
        logits = mean(log_proba)
        each = F.cross_entropy(logits, labels, reduction="none")
        return (weight * each).sum() / weight.sum()

    lbfgs_loop(mean, loss, max_iter=_ITERATIONS, weight_decay=weight_decay)
    return float(loss().detach())


@trainable()
def loss_together(
    proba: NDArray[np.float64], labels: NDArray[np.intp], weight: NDArray[np.float64]
) -> float:
    """Compute the log-loss of stages that answer together, at their best weights.

    Parameters
    ----------
    proba : ndarray of float64, shape (n_stages, n_samples, n_classes)
        Answers of the stages. One stage alone is sharpened or flattened as fits best.
    labels : ndarray of intp, shape (n_samples,)
        True class codes.
    weight : ndarray of float64, shape (n_samples,)
        Sample weights.

    Returns
    -------
    loss : float
        Weighted mean over the samples.
    """
    n_stages, _, n_classes = proba.shape
    given = _CountedSamples(proba, labels, weight)
    return given.fit(LogMean(n_stages, n_classes, shift=False))


class _CountedSamples:
    """Answers, labels and weights of the samples that count, to fit means on."""

    def __init__(
        self,
        proba: NDArray[np.float64],
        labels: NDArray[np.intp],
        weight: NDArray[np.float64],
    ) -> None:
        present = weight > 0
        self._logs = _logs(proba[:, present]).transpose(0, 1)
        self._labels = torch.from_numpy(labels[present].astype(np.int64))
        self._weight = torch.from_numpy(weight[present])
        # The prior weighs as much as one sample. More than this changes nothing, and an
        # infinite penalty on a total weight near zero would give NaN.
        total = max(float(self._weight.sum()), 1 / _MOST_DECAY)
        self._decay = min(1 / total, _MOST_DECAY)

    def fit(self, mean: LogMean) -> float:
        """Fit a mean of the first stages in place; return its log-loss."""
        return fit_log_mean(
            mean,
            self._logs[:, : len(mean.exponents)],
            self._labels,
            self._weight,
            weight_decay=self._decay,
        )


@savable
@dataclass(frozen=True)
class Ensembles:
    """For every stage the weights of its own answer and of those before it.

    Parameters
    ----------
    exponents : ndarray of float64, shape (n_stages, n_stages)
        Row k holds the logarithms of the weights of stage k; entries beyond k are not
        used.

    Notes
    -----
    Our definition, after the ensembles of Zero Time Waste (Wolczyk et al. 2021):
    ``log q_k = log_softmax((1/(k+1)) sum_{j<=k} e^{w_kj} log p_j)``, fitted on the
    cross-entropy of the calibration samples, which trained no branch, under a standard
    normal prior on w. The last stage takes part; there is no class bias.
    """

    exponents: NDArray[np.float64]

    @classmethod
    @trainable()
    def fit(
        cls,
        proba: NDArray[np.float64],
        labels: NDArray[np.intp],
        weight: NDArray[np.float64],
    ) -> Ensembles:
        """Find the weights.

        Parameters
        ----------
        proba : ndarray of float64, shape (n_stages, n_samples, n_classes)
            Answers of the stages to samples that trained none of them.
        labels : ndarray of intp, shape (n_samples,)
            True class codes.
        weight : ndarray of float64, shape (n_samples,)
            Sample weights.

        Returns
        -------
        ensembles : Ensembles
            The weights of every stage; the first has its own answer, sharpened or
            flattened.
        """
        n_stages, _, n_classes = proba.shape
        given = _CountedSamples(proba, labels, weight)
        exponents = np.zeros((n_stages, n_stages))
        for k in range(n_stages):
            mean = LogMean(k + 1, n_classes, shift=False)
            given.fit(mean)
            exponents[k, : k + 1] = mean.exponents.detach().numpy()
        return cls(exponents)

    def combine(self, proba: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the answers of every stage with those before it, as `proba`."""
        logs = _logs(proba).transpose(0, 1)
        return np.stack([self._mean(k, logs[:, : k + 1]) for k in range(len(proba))])

    def answer(self, stage: int, alone: Answer) -> Answer:
        """Return the answer of a stage with those before it, held in its memory."""

        def answer(features: Tensor, before: StageAnswer | None) -> StageAnswer:
            own = alone(features, None if before is None else before.alone)
            memory = _logs(own.proba)[:, None]
            if before is not None and before.memory is not None:
                memory = torch.cat([before.memory, memory], dim=1)
            return StageAnswer(
                self._mean(stage, memory),
                before,
                memory=memory,
                alone=None if own.memory is None else own,
            )

        return answer

    def own_codes(self, said: StageAnswer) -> NDArray[np.intp]:
        """Class codes of a stage by itself, from its answer with those before it."""
        assert said.memory is not None  # every `answer` holds one
        codes: NDArray[np.intp] = said.memory[:, -1].argmax(dim=1).numpy()
        return codes

    def _mean(self, stage: int, logs: Tensor) -> NDArray[np.float64]:
        used = stage + 1
        weight = torch.from_numpy(np.exp(self.exponents[stage, :used]) / used)
        return softmax64(torch.einsum("nkc,k->nc", logs, weight))


def calibration_of_stages(
    data: TrainingData, answers: StageTable, proba: NDArray[np.float64] | None
) -> tuple[CalibrationSet, Ensembles | None]:
    """Make the calibration set of trained stages, and their ensembles.

    Parameters
    ----------
    data : TrainingData
        What they were trained on.
    answers : StageTable
        What each stage by itself answers to the calibration samples.
    proba : ndarray of float64, shape (n_stages, n_samples, n_classes), or None
        The probabilities, where stages are to answer with those before them.

    Returns
    -------
    calibration : CalibrationSet
        Answers as they will be given; the reference is the last stage by itself.
    ensembles : Ensembles or None
        Weights of the stages' answers.
    """
    held = data.folds.calibration
    labels, weight = data.codes[held], data.weight[held]
    reference, ensembles = answers.predicted[-1], None
    if proba is not None:
        ensembles = Ensembles.fit(proba, labels, weight)
        answers = StageTable.of(ensembles.combine(proba))
    return CalibrationSet(answers, labels, weight, reference=reference), ensembles


def _logs(proba: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.log(np.maximum(proba, _LEAST)))
