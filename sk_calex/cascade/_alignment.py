"""Survivor weights, which train a branch on the samples that will reach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions

from sk_calex.utils._codec import savable

__all__ = [
    "N_BINS",
    "SurvivorAlignment",
    "TrainingProfile",
    "bin_weights",
    "effective_sample_size",
    "exit_probability",
    "survivor_weights",
]

#: Bins of the confidence between 0 and 1 that a fit keeps; reports may merge them.
N_BINS = 20


@savable
class SurvivorAlignment(BaseEstimator):
    """Settings of the training weights of later branches.

    A later branch sees only the samples that no earlier branch has answered. Its
    training rows are weighted accordingly, by their probability of reaching it.

    Parameters
    ----------
    kind : {"soft", "hard", "none"}, default="soft"
        Training weights of later branches:

        - "soft": the probability of surviving the earlier branches, mixed with all
          samples alike (see `mixture`). What measured best.
        - "hard": the survivors alone, as BTS-EE does.
        - "none": all samples alike; the quickest, as no earlier branch has to run
          about the training rows.
    margin : float, sequence of float or "same", default=0.05
        Margin of the thresholds from which the weights are made, with the settings of
        the cascade's calibrator; a sequence holds one margin for each branch. A number
        leaves the branches independent of the cascade's own margin. "same" follows
        it, and then each margin needs another fit.
    bandwidth : float, default=0.1
        Width of the sigmoid around a threshold, in units of confidence; 0 is a step.
        Used by "soft".
    mixture : float, default=0.5
        Share of the survivors in the training distribution, in [0, 1]; the rest is all
        samples alike. The paper's setting is 1. Used by "soft".
    cross_fit : int, default=None
        Number of folds of the training rows from which the confidences that make the
        weights are taken out of fold. None uses the branch's own confidences on the
        rows that trained it, at a fraction of the time. With a cascade's `cv` that
        calibrates out of fold it is not used: they are out of fold anyway.

    See Also
    --------
    CascadeClassifier : Takes it as its parameter `alignment`.
    survivor_weights : Computes the weights.

    Notes
    -----
    The survivor weights are CalexNet's (Aperstein & Apartsin 2026, Eq. 13); the form of
    the exit probability, the mixture and the out-of-fold confidences are our
    definitions.

    References
    ----------
    Aperstein, Y. & Apartsin, A. (2026). CalexNet. Electronics 15(10), 2149.

    Examples
    --------
    >>> from sk_calex import CascadeClassifier, SurvivorAlignment
    >>> cascade = CascadeClassifier(alignment=SurvivorAlignment(mixture=1.0))
    >>> cascade.get_params()["alignment__mixture"]
    1.0
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "kind": [StrOptions({"soft", "hard", "none"})],
        "margin": [Real, "array-like", StrOptions({"same"})],
        "bandwidth": [Interval(Real, 0, None, closed="left")],
        "mixture": [Interval(Real, 0, 1, closed="both")],
        "cross_fit": [Interval(Integral, 2, None, closed="left"), None],
    }

    def __init__(
        self,
        kind: str = "soft",
        *,
        margin: float | Sequence[float] | str = 0.05,
        bandwidth: float = 0.1,
        mixture: float = 0.5,
        cross_fit: int | None = None,
    ) -> None:
        self.kind = kind
        self.margin = margin
        self.bandwidth = bandwidth
        self.mixture = mixture
        self.cross_fit = cross_fit

    def weigh(
        self,
        survival: NDArray[np.float64],
        sample_weight: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Compute training weights from the probabilities of reaching a branch.

        Parameters
        ----------
        survival : ndarray of float64, shape (n_samples,)
            Probability that no earlier branch answers the sample.
        sample_weight : ndarray of float64, shape (n_samples,)
            Weights of the samples themselves.

        Returns
        -------
        weights : ndarray of float64, shape (n_samples,)
            As of `survivor_weights`.
        """
        mixture = self.mixture if self.kind == "soft" else 1.0
        return survivor_weights(survival, mixture=mixture, sample_weight=sample_weight)

    def exit_probability(
        self, scores: NDArray[np.float64], thresholds: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Compute the probability that samples exit at a branch.

        Parameters
        ----------
        scores : ndarray of float64, shape (n_samples,)
            Confidences of the branch.
        thresholds : ndarray of float64, shape (n_samples,)
            Threshold of each sample's predicted class.

        Returns
        -------
        probability : ndarray of float64, shape (n_samples,)
            As of :func:`sk_calex.exit_probability`; 0 or 1 with ``kind="hard"``.
        """
        bandwidth = self.bandwidth if self.kind == "soft" else 0.0
        return exit_probability(scores, thresholds, bandwidth=bandwidth)

    @property
    def used_params(self) -> dict[str, Any]:
        """The parameters that matter for this `kind`."""
        used = {
            "none": ["kind"],
            "hard": ["kind", "margin", "cross_fit"],
            "soft": ["kind", "margin", "cross_fit", "bandwidth", "mixture"],
        }[self.kind]
        return {name: getattr(self, name) for name in used}


def exit_probability(
    scores: ArrayLike,
    thresholds: ArrayLike,
    *,
    bandwidth: float = 0.1,
) -> NDArray[np.float64]:
    """Compute a smooth probability that a sample exits at a branch.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        Confidences of the branch.
    thresholds : array-like of shape (n_samples,)
        Threshold of each sample's predicted class; ``inf`` where the class never
        exits.
    bandwidth : float, default=0.1
        Width h of the sigmoid, in units of confidence. 0 gives the hard decision
        ``scores >= thresholds``.

    Returns
    -------
    probability : ndarray of float64, shape (n_samples,)
        ``sigmoid((score - threshold) / h)``, in [0, 1].

    Raises
    ------
    ValueError
        If the bandwidth is negative or not finite, or the shapes differ.

    Notes
    -----
    Weights that continuously match the survivors are CalexNet's (Aperstein & Apartsin
    2026, Eq. 13); this form is our definition.

    Examples
    --------
    >>> from sk_calex import exit_probability
    >>> exit_probability([0.9, 0.5], [0.5, 0.5], bandwidth=0.1).round(3)
    array([0.982, 0.5  ])
    >>> exit_probability([0.9, 0.4], [0.5, 0.5], bandwidth=0)
    array([1., 0.])
    """
    s = np.asarray(scores, dtype=np.float64)
    t = np.asarray(thresholds, dtype=np.float64)
    if s.shape != t.shape:
        raise ValueError(
            f"scores and thresholds must have one entry a sample each; got shapes "
            f"{s.shape} and {t.shape}. Give thresholds[predicted]."
        )
    if not np.isfinite(bandwidth) or bandwidth < 0:
        raise ValueError(
            f"bandwidth={bandwidth!r} must be a finite number >= 0 (0 = hard exits)."
        )
    if bandwidth == 0:
        return (s >= t).astype(np.float64)
    # sigmoid(z) = (1 + tanh(z / 2)) / 2, without overflow at infinite thresholds;
    # at the smallest bandwidths z itself is infinite, which is right.
    with np.errstate(over="ignore"):
        return (1 + np.tanh((s - t) / (2 * bandwidth))) / 2


def survivor_weights(
    survival: ArrayLike,
    *,
    mixture: float = 1.0,
    sample_weight: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Compute training weights from the probability of reaching a branch.

    Parameters
    ----------
    survival : array-like of shape (n_samples,)
        Probability, in [0, 1], that no earlier branch answers the sample: the product
        of ``1 - exit_probability`` over the earlier branches.
    mixture : float, default=1.0
        Share b of the survivors in the training distribution: the weights are
        ``(1 - b) + b * w``, with w scaled to mean 1. 1 trains on survivors only, 0 on
        all samples alike.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples themselves, which multiply.

    Returns
    -------
    weights : ndarray of float64, shape (n_samples,)
        Weights; their mean, weighted by `sample_weight`, is 1 before `sample_weight`
        multiplies. Without any survivor all samples count alike.

    Raises
    ------
    ValueError
        If the mixture or a survival lies outside [0, 1], or the sample weights are
        not finite and non-negative with a positive sum.

    Notes
    -----
    ``w_k(x) = prod_{j<k} (1 - e_j(x))``, scaled to mean 1: CalexNet, Eq. 13 (form of
    e: our definition). The defensive mixture is our definition: pure survivor weights
    can leave an effective sample size that starves the branch.

    Examples
    --------
    >>> from sk_calex import survivor_weights
    >>> survivor_weights([1.0, 0.5, 0.0])
    array([2., 1., 0.])
    >>> survivor_weights([1.0, 0.5, 0.0], mixture=0.5)
    array([1.5, 1. , 0.5])
    """
    if not 0 <= mixture <= 1:
        raise ValueError(
            f"mixture={mixture!r} must lie in [0, 1]: the share of the survivors in "
            "the training distribution."
        )
    s = np.asarray(survival, dtype=np.float64)
    if s.ndim != 1 or s.size == 0 or not np.all((s >= 0) & (s <= 1)):  # nor NaN
        raise ValueError(
            "survival must hold one probability in [0, 1] a sample, at least one; got "
            f"{s!r}. It is a product of 1 - exit_probability(...)."
        )
    base = np.ones_like(s)
    if sample_weight is not None:
        base = np.asarray(sample_weight, dtype=np.float64)
        check_weights(base, "sample_weight", s.shape)
    mass = np.average(s, weights=base)
    # Without a survivor the branch will see no sample, and any training will do.
    scaled = s / mass if mass > 0 else np.ones_like(s)
    return ((1 - mixture) + mixture * scaled) * base


def effective_sample_size(weights: ArrayLike) -> float:
    """Compute the number of equally weighted samples that are worth as much.

    Parameters
    ----------
    weights : array-like of shape (n_samples,)
        Finite, non-negative weights, not all zero.

    Returns
    -------
    size : float
        Kish's ``(sum w)^2 / sum w^2``, between 1 and n_samples.

    Raises
    ------
    ValueError
        If a weight is negative or not finite, or all are zero.

    Notes
    -----
    Kish, Survey Sampling (1965).

    Examples
    --------
    >>> from sk_calex import effective_sample_size
    >>> effective_sample_size([1, 1, 0, 0])
    2.0
    """
    w = np.asarray(weights, dtype=np.float64)
    check_weights(w, "weights", (w.size,))
    w = w / w.max()  # squares neither vanish nor overflow
    return float(w.sum()) ** 2 / float(np.square(w).sum())


def check_weights(
    weights: NDArray[np.float64], name: str, shape: tuple[int, ...]
) -> None:
    usable = np.isfinite(weights).all() and (weights >= 0).all() and weights.any()
    if weights.shape != shape or not usable:
        raise ValueError(
            f"{name} must hold one finite, non-negative weight a sample, not all zero, "
            f"in shape {shape}; got {weights!r}."
        )


@savable
@dataclass(frozen=True)
class TrainingProfile:
    """Weight of the training rows by class and by confidence, for each branch.

    The confidence is that of the branch before, from which the weights are made: out
    of fold where the fit took it so. It is NaN at the first branch, and where the
    training rows were not scored since nothing depends on it.

    Parameters
    ----------
    class_weight : ndarray of float64, shape (n_branches, n_classes)
        Training weight of the rows of each true class.
    confidence_weight : ndarray of float64, shape (n_branches, N_BINS)
        Training weight of the rows by confidence, in equal bins from 0 to 1.
    plain_class_weight : ndarray of float64, shape (n_classes,)
        The same as `class_weight` with the rows' own sample weights.
    plain_confidence_weight : ndarray of float64, shape (n_branches, N_BINS)
        The same as `confidence_weight` with the rows' own sample weights.
    n_samples : int
        Training rows of positive sample weight.
    """

    class_weight: NDArray[np.float64]
    confidence_weight: NDArray[np.float64]
    plain_class_weight: NDArray[np.float64]
    plain_confidence_weight: NDArray[np.float64]
    n_samples: int

    @classmethod
    def of(
        cls,
        codes: NDArray[np.intp],
        plain: NDArray[np.float64],
        weights: Sequence[NDArray[np.float64]],
        before: Sequence[NDArray[np.float64] | None],
        n_classes: int,
    ) -> TrainingProfile:
        """Summarise training rows.

        Parameters
        ----------
        codes : ndarray of intp, shape (n_samples,)
            True class codes.
        plain : ndarray of float64, shape (n_samples,)
            Sample weights.
        weights : sequence of ndarray of float64, shape (n_samples,)
            Training weights, one array for each branch.
        before : sequence of ndarray of float64, shape (n_samples,), or None
            Confidence of the branch before, by branch; NaN or None where unknown.
        n_classes : int
            Number of classes.
        """
        by_confidence = [bin_weights(*p) for p in zip(before, weights, strict=True)]
        return cls(
            np.stack([np.bincount(codes, w, n_classes) for w in weights]),
            np.stack(by_confidence),
            np.asarray(np.bincount(codes, plain, n_classes), np.float64),
            np.stack([bin_weights(confidence, plain) for confidence in before]),
            int(np.count_nonzero(plain)),
        )

    def select(self, branches: Sequence[int]) -> TrainingProfile:
        """Keep some of the branches; NaN where another one now comes before."""
        rows = list(branches)
        follows = np.array(rows) == np.array([-1, *rows[:-1]]) + 1
        known = np.where(follows, 1.0, np.nan)[:, None]
        return replace(
            self,
            class_weight=self.class_weight[rows],
            confidence_weight=known * self.confidence_weight[rows],
            plain_confidence_weight=known * self.plain_confidence_weight[rows],
        )


def bin_weights(
    confidence: NDArray[np.float64] | None, weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum weights in equal bins of confidence; NaN if a confidence is unknown.

    A bin holds its lower edge; the last one also holds 1.
    """
    if confidence is None or np.isnan(confidence[weight > 0]).any():
        return np.full(N_BINS, np.nan)
    cells = (np.nan_to_num(confidence) * N_BINS).astype(np.intp)
    cells = np.clip(cells, 0, N_BINS - 1)
    return np.asarray(np.bincount(cells, weight, N_BINS), np.float64)
