"""What a stage answers to samples, and what exit rules read off it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sk_calex.utils._codec import savable
from sk_calex.utils._stage_answer import StageAnswer
from sk_calex.utils._validation import check_probabilities

__all__ = ["Signals", "StageAnswer", "StageTable"]


class Signals(Protocol):
    """What exit rules may look at, for the n samples that reach a stage."""

    @property
    def predicted(self) -> NDArray[np.intp]:
        """Class code of the largest probability, shape (n,)."""
        ...

    @property
    def confidence(self) -> NDArray[np.float64]:
        """The largest probability, shape (n,)."""
        ...

    @property
    def entropy(self) -> NDArray[np.float64]:
        """``-sum p log p`` in nats, shape (n,)."""
        ...

    @property
    def gap(self) -> NDArray[np.float64]:
        """The largest probability minus the second largest, shape (n,)."""
        ...

    @property
    def streak(self) -> NDArray[np.intp]:
        """Stages in a row, this one included, with this prediction, shape (n,)."""
        ...

    @property
    def gate(self) -> NDArray[np.float64] | None:
        """A confidence that the method itself computes, shape (n,); None: it has none.

        Such as PTEENet's confidence head.
        """
        ...


@savable
@dataclass(frozen=True)
class StageTable:
    """Hold the answers of every stage to the same samples, without exits.

    Parameters
    ----------
    predicted : ndarray of intp, shape (n_stages, n_samples)
        Class codes; the last stage is the backbone or final estimator.
    confidence, entropy, gap : ndarray of float64, shape (n_stages, n_samples)
        See `Signals`.
    gate : ndarray of float64, shape (n_stages, n_samples)
        The method's own confidence; NaN where it has none.
    n_classes : int
        Number of classes.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.calibration import StageTable
    >>> proba = np.array([[[0.7, 0.3], [0.4, 0.6]], [[0.6, 0.4], [0.5, 0.5]]])
    >>> table = StageTable.from_probabilities(proba)
    >>> table.predicted
    array([[0, 1],
           [0, 0]])
    >>> table.stage(1).streak
    array([2, 1])
    """

    predicted: NDArray[np.intp]
    confidence: NDArray[np.float64]
    entropy: NDArray[np.float64]
    gap: NDArray[np.float64]
    gate: NDArray[np.float64]
    n_classes: int

    @classmethod
    def empty(cls, n_stages: int, n_samples: int, n_classes: int) -> StageTable:
        """Make a table to be filled by `put`.

        Parameters
        ----------
        n_stages, n_samples, n_classes : int
            Its size; the last stage is the backbone or final estimator.

        Returns
        -------
        table : StageTable
            Of NaN and class 0.
        """
        shape = (n_stages, n_samples)
        confidence, entropy, gap, gate = (np.full(shape, np.nan) for _ in range(4))
        predicted = np.zeros(shape, dtype=np.intp)
        return cls(predicted, confidence, entropy, gap, gate, n_classes)

    @classmethod
    def from_probabilities(cls, probabilities: ArrayLike) -> StageTable:
        """Make a table of cached probabilities.

        Parameters
        ----------
        probabilities : array-like of shape (n_stages, n_samples, n_classes)
            Of all branches in cascade order, the last stage's last.

        Returns
        -------
        table : StageTable
            What exit rules need of them.

        Raises
        ------
        ValueError
            If there are fewer than two stages or an entry is not a probability.
        """
        stages = np.asarray(probabilities, dtype=np.float64)
        if stages.ndim != 3 or len(stages) < 2:
            raise ValueError(
                "probabilities must have shape (n_stages, n_samples, n_classes) with "
                "the branches in cascade order and the last stage at the end, got "
                f"shape {stages.shape}. Stack the predict_proba of each."
            )
        return cls.of(
            check_probabilities(proba, f"probabilities[{k}]")
            for k, proba in enumerate(stages)
        )

    @classmethod
    def of(cls, stages: Iterable[NDArray[np.float64]]) -> StageTable:
        """Make a table of probabilities without checking them.

        Parameters
        ----------
        stages : iterable of ndarray of float64, shape (n_samples, n_classes)
            Probabilities of each stage.

        Returns
        -------
        table : StageTable
            What exit rules need of them.
        """
        answers = [StageAnswer(proba) for proba in stages]
        table = cls.empty(len(answers), *answers[0].proba.shape)
        for k, answer in enumerate(answers):
            table.put(k, slice(None), answer)
        return table

    def put(
        self, stage: int, rows: slice | NDArray[np.intp], answer: StageAnswer
    ) -> None:
        """Enter the answers of a stage to some rows.

        Parameters
        ----------
        stage : int
            Index of the stage.
        rows : slice or ndarray of intp, shape (n_rows,)
            Rows of the table.
        answer : StageAnswer
            Answers to these rows.
        """
        self.predicted[stage, rows] = answer.predicted
        self.confidence[stage, rows] = answer.confidence
        self.entropy[stage, rows] = answer.entropy
        self.gap[stage, rows] = answer.gap
        if answer.gate is not None:
            self.gate[stage, rows] = answer.gate

    def fill_stage(self, stage: int, row: StageTable) -> None:
        """Enter a table of one stage in the place of a stage.

        Parameters
        ----------
        stage : int
            Index of the stage.
        row : StageTable
            Of one stage, and of the same samples.
        """
        for name in ("predicted", "confidence", "entropy", "gap", "gate"):
            getattr(self, name)[stage] = getattr(row, name)[0]

    @property
    def n_stages(self) -> int:
        """Number of stages: branches and the last one."""
        return len(self.predicted)

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return self.predicted.shape[1]

    @cached_property
    def streak(self) -> NDArray[np.intp]:
        """Stages in a row with the same prediction, shape (n_stages, n_samples)."""
        streak = np.ones_like(self.predicted)
        for k in range(1, self.n_stages):
            same = self.predicted[k] == self.predicted[k - 1]
            streak[k] += np.where(same, streak[k - 1], 0)
        return streak

    def stage(self, stage: int) -> Signals:
        """Return the signals of one stage.

        Parameters
        ----------
        stage : int
            Index of the stage.

        Returns
        -------
        signals : Signals
            What an exit rule may look at.
        """
        return _Row(self, stage)

    def of_stages(self, stages: Sequence[int]) -> StageTable:
        """Keep some of the stages, as if there were no others.

        Parameters
        ----------
        stages : sequence of int
            Their indices.

        Returns
        -------
        table : StageTable
            Of these stages.
        """
        rows = list(stages)
        return StageTable(
            self.predicted[rows],
            self.confidence[rows],
            self.entropy[rows],
            self.gap[rows],
            self.gate[rows],
            self.n_classes,
        )

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> StageTable:
        """Keep some of the samples.

        Parameters
        ----------
        rows : ndarray of intp or bool, shape (n_rows,) or (n_samples,)
            Indices of the samples, or a mask.

        Returns
        -------
        table : StageTable
            Of these samples.
        """
        return StageTable(
            self.predicted[:, rows],
            self.confidence[:, rows],
            self.entropy[:, rows],
            self.gap[:, rows],
            self.gate[:, rows],
            self.n_classes,
        )


@dataclass(frozen=True)
class _Row:
    """One stage of a table."""

    table: StageTable
    index: int

    @property
    def predicted(self) -> NDArray[np.intp]:
        return self.table.predicted[self.index]

    @property
    def confidence(self) -> NDArray[np.float64]:
        return self.table.confidence[self.index]

    @property
    def entropy(self) -> NDArray[np.float64]:
        return self.table.entropy[self.index]

    @property
    def gap(self) -> NDArray[np.float64]:
        return self.table.gap[self.index]

    @property
    def streak(self) -> NDArray[np.intp]:
        return self.table.streak[self.index]

    @property
    def gate(self) -> NDArray[np.float64] | None:
        gate = self.table.gate[self.index]
        return None if np.isnan(gate).all() else gate
