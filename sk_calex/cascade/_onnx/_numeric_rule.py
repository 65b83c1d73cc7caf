"""An exit rule as numbers, decided in numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.cascade._onnx._plain import field, number_array, plain_numbers
from sk_calex.utils._stage_answer import StageAnswer

__all__ = ["NumericRule", "Regression"]

_SIGNALS = ("confidence", "gap", "negative_entropy", "streak", "gate")
_REGRESSIONS = ("linear", "logistic")
_N_REGRESSORS = 3


@dataclass(frozen=True)
class Regression:
    """A linear function of the scaled confidence, entropy and gap.

    Parameters
    ----------
    mean, scale, coef : ndarray of float64, shape (3,)
        ``coef @ ((signals - mean) / scale) + intercept``.
    intercept : float
        The constant.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    coef: NDArray[np.float64]
    intercept: float

    @classmethod
    def from_json(cls, record: Any) -> Regression:
        """Read it from the manifest."""
        mean, scale, coef = (
            number_array(field(record, name), f"rule: {name}", (_N_REGRESSORS,))
            for name in ("mean", "scale", "coef")
        )
        intercept = number_array(field(record, "intercept"), "rule: intercept", ())
        if not (np.isfinite([*mean, *scale, *coef, intercept]).all() and scale.all()):
            raise ValueError("rule: a regression of the manifest is not finite.")
        return cls(mean, scale, coef, float(intercept))

    def __call__(self, said: StageAnswer) -> NDArray[np.float64]:
        signals = np.column_stack([said.confidence, said.entropy, said.gap])
        value: NDArray[np.float64] = (signals - self.mean) / self.scale @ self.coef
        return value + self.intercept


@dataclass(frozen=True)
class NumericRule:
    """Exit where a score reaches the threshold of the branch and the predicted class.

    Parameters
    ----------
    score : str
        As `ExitPolicy._scores_as_data` names it.
    thresholds : ndarray of float64, shape (n_branches, n_classes)
        Thresholds; ``inf`` never exits.
    regressions : tuple of Regression or None
        One for each branch, with "linear" and "logistic"; else empty.
    """

    score: str
    thresholds: NDArray[np.float64]
    regressions: tuple[Regression | None, ...] = ()

    @classmethod
    def from_json(cls, record: Any, n_branches: int, n_classes: int) -> NumericRule:
        """Read it from the manifest."""
        score, regressions = field(record, "score"), []
        shape = (n_branches, n_classes)
        thresholds = number_array(field(record, "thresholds"), "thresholds", shape)
        if score in _REGRESSIONS:
            regressions = field(record, "branches")
            if not isinstance(regressions, list) or len(regressions) != n_branches:
                raise ValueError(f"rule: the manifest lacks {n_branches} regressions.")
        elif score not in _SIGNALS:
            raise ValueError(
                f"rule: the score {score!r:.50} of the manifest is not known; this "
                f"version knows {', '.join((*_SIGNALS, *_REGRESSIONS))}."
            )
        given = [None if r is None else Regression.from_json(r) for r in regressions]
        return cls(score, thresholds, tuple(given))

    @staticmethod
    def to_json(scores: dict[str, Any], thresholds: NDArray[np.float64]) -> Any:
        """Write scores, as `ExitPolicy._scores_as_data` gives them, and thresholds."""
        return {**scores, "thresholds": plain_numbers(np.atleast_2d(thresholds))}

    def exits(self, branch: int, said: StageAnswer) -> NDArray[np.bool_]:
        """Tell which samples exit at a branch, which said this of them."""
        mask: NDArray[np.bool_] = (
            self._scores(branch, said) >= self.thresholds[branch][said.predicted]
        )
        return mask

    def _scores(self, branch: int, said: StageAnswer) -> NDArray[np.float64]:
        if self.score in _REGRESSIONS:
            regression = self.regressions[branch]
            if regression is None:
                return np.full(len(said.predicted), -1.0)
            value = regression(said)
            return value if self.score == "linear" else 0.5 * (1 + np.tanh(value / 2))
        if self.score == "negative_entropy":
            return -said.entropy
        value = getattr(said, self.score)  # one of _SIGNALS
        return np.asarray(value, dtype=np.float64)
