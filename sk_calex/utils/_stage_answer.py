"""What one stage answers, in numpy: the same with torch and without it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["StageAnswer", "softmax_in_float64"]


def softmax_in_float64(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the softmax over the last axis in float64, where exits are decided."""
    z = np.asarray(logits, dtype=np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    proba: NDArray[np.float64] = e / e.sum(axis=-1, keepdims=True)
    return proba


class StageAnswer:
    """Hold the probabilities of one stage for the samples that reach it.

    Parameters
    ----------
    proba : ndarray of float64, shape (n_samples, n_classes)
        Probabilities; what a sample that exits here is answered.
    before : StageAnswer, default=None
        Answer of the stage before to the same samples; None at the first stage.
    gate : ndarray of float64, shape (n_samples,), default=None
        The method's own confidence.
    memory : ndarray or Tensor of shape (n_samples, ...), default=None
        What the next stage's answer builds on, such as logits.
    alone : StageAnswer, default=None
        What the stage says by itself, where it answers with those before it and the
        next one builds on that, too.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.calibration import StageAnswer
    >>> first = StageAnswer(np.array([[0.7, 0.3], [0.4, 0.6]]))
    >>> second = StageAnswer(np.array([[0.6, 0.4], [0.5, 0.5]]), first)
    >>> second.predicted, second.streak
    (array([0, 0]), array([2, 1]))
    """

    def __init__(
        self,
        proba: NDArray[np.float64],
        before: StageAnswer | None = None,
        *,
        gate: NDArray[np.float64] | None = None,
        memory: Any = None,
        alone: StageAnswer | None = None,
    ) -> None:
        self.proba, self.gate, self.memory, self.alone = proba, gate, memory, alone
        self.predicted: NDArray[np.intp] = proba.argmax(axis=1)
        self.streak = np.ones(len(proba), dtype=np.intp)
        if before is not None:
            self.streak += np.where(
                before.predicted == self.predicted, before.streak, 0
            )

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """The largest probability."""
        return self.proba.max(axis=1)

    @cached_property
    def entropy(self) -> NDArray[np.float64]:
        """Entropy of the probabilities in nats."""
        logs = np.log(self.proba, where=self.proba > 0, out=np.zeros_like(self.proba))
        # Not -sum: a certain answer has entropy 0, not -0.
        entropy: NDArray[np.float64] = (self.proba * -logs).sum(axis=1)
        return entropy

    @cached_property
    def gap(self) -> NDArray[np.float64]:
        """The largest probability minus the second largest."""
        second = np.partition(self.proba, -2, axis=1)[:, -2]
        return self.confidence - second

    def keep(self, rows: NDArray[np.intp]) -> StageAnswer:
        """Keep some of the samples: those that go on.

        Parameters
        ----------
        rows : ndarray of intp, shape (n_kept,)
            Indices of the samples.

        Returns
        -------
        answer : StageAnswer
            The answer to these samples.
        """
        # Torch takes an index in numpy, too, also where its tensor is on a GPU.
        memory = None if self.memory is None else self.memory[rows]
        gate = None if self.gate is None else self.gate[rows]
        alone = None if self.alone is None else self.alone.keep(rows)
        rest = StageAnswer(self.proba[rows], gate=gate, memory=memory, alone=alone)
        rest.streak = self.streak[rows]
        return rest
