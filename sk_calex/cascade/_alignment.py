"""Survivor weights: train a branch on the samples that will reach it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["effective_sample_size", "exit_probability", "survivor_weights"]


def exit_probability(
    scores: ArrayLike,
    thresholds: ArrayLike,
    *,
    bandwidth: float = 0.1,
) -> NDArray[np.float64]:
    """Smooth probability that a sample exits at a branch.

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
    """Training weights from the probability of reaching a branch.

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
    # Nobody left: the branch will see no sample, and any training will do.
    scaled = s / mass if mass > 0 else np.ones_like(s)
    return ((1 - mixture) + mixture * scaled) * base


def effective_sample_size(weights: ArrayLike) -> float:
    """Number of equally weighted samples that are worth as much.

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
