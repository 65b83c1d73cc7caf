"""Exact tests of what one classifier loses against another on the same rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betainc
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sk_calex.utils._intervals import upper_limit
from sk_calex.utils._validation import check_open_interval

__all__ = [
    "accuracy_drop_bound",
    "disagreement_p_value",
    "drop_bound",
    "drop_p_value",
    "fewest_rows",
    "nuisance_error_of",
    "paired_drop_p_value",
]

# Share of the allowed error that pays for not knowing how often the answers differ.
_NUISANCE_SHARE = 0.02
_PRECISION = 1e-12  # of a bound


def accuracy_drop_bound(
    y_true: ArrayLike,
    y_reference: ArrayLike,
    y_pred: ArrayLike,
    *,
    confidence_level: float = 0.95,
) -> float:
    """Bound from above how much accuracy one classifier loses against another.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels of rows that neither classifier, nor any choice between classifiers,
        has seen.
    y_reference : array-like of shape (n_samples,)
        Labels predicted by the classifier to compare with.
    y_pred : array-like of shape (n_samples,)
        Labels predicted by the classifier that may be worse.
    confidence_level : float, default=0.95
        Probability, over draws of the rows, that the bound holds.

    Returns
    -------
    bound : float
        Upper limit of ``accuracy(reference) - accuracy(pred)`` on the population of the
        rows. Negative where the second classifier is better with this confidence.

    Raises
    ------
    ValueError
        If lengths differ, there is no row, or a value is out of its range.

    See Also
    --------
    paired_drop_p_value : The test that this bound inverts.
    ExitRiskController : A cascade whose drop is certified.

    Notes
    -----
    The smallest drop that the test of `paired_drop_p_value` rejects, with
    ``nuisance_error = 0.02 * (1 - confidence_level)``; our definition. It holds for one
    pair of classifiers that was fixed before the rows were seen, and for independent
    rows. Asked about several pairs on the same rows, it holds for each one alone, not
    for all together and not for the best of them.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex import accuracy_drop_bound
    >>> y_true = np.zeros(1000, dtype=int)
    >>> y_reference, y_pred = y_true.copy(), y_true.copy()
    >>> y_pred[:5] = 1  # loses five rows
    >>> y_reference[5:7] = 1  # and gains two
    >>> round(accuracy_drop_bound(y_true, y_reference, y_pred), 4)
    0.0106
    """
    check_open_interval(confidence_level, 0, 1, "confidence_level")
    lost, gained, n = _count(y_true, y_reference, y_pred)
    return drop_bound(lost, gained, n, 1 - confidence_level)


def paired_drop_p_value(
    y_true: ArrayLike,
    y_reference: ArrayLike,
    y_pred: ArrayLike,
    *,
    max_drop: float = 0.0,
    nuisance_error: float = 0.001,
) -> float:
    """Test whether one classifier loses more accuracy than allowed against another.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels of rows that neither classifier, nor any choice between classifiers,
        has seen.
    y_reference : array-like of shape (n_samples,)
        Labels predicted by the classifier to compare with.
    y_pred : array-like of shape (n_samples,)
        Labels predicted by the classifier that may be worse.
    max_drop : float, default=0.0
        Accuracy that may be lost, in (-1, 1): 0.01 is one point. A negative number
        demands a gain.
    nuisance_error : float, default=0.001
        Part of the p-value that pays for not knowing how often exactly one of the two
        is right. It must be chosen before the rows are seen.

    Returns
    -------
    p_value : float
        Probability, at most, of rows this favourable if the true drop exceeded
        `max_drop`. Small: the drop is at most `max_drop`.

    Raises
    ------
    ValueError
        If lengths differ, there is no row, or a value is out of its range.

    See Also
    --------
    accuracy_drop_bound : The smallest drop that this test rejects.

    Notes
    -----
    Our definition, exact for independent rows. Let a and b count the rows that only
    the reference and only the other classifier gets right, N = a + b, d = a - b, and
    let q be the probability of such a row. Given N, a is binomial, so that few losses
    are likeliest where the drop equals `max_drop`; and where
    ``d <= (n - 1) * max_drop - 1`` and q <= 1/2, their probability rises with q, since
    the sum of the paired differences is then a sum of independent 0/1 variables up to a
    shift, whose mode lies within 1 of its mean (Darroch 1964). So its largest value
    over an upper confidence limit of q stands at that limit; maximising over a
    confidence set and adding its error is valid (Berger & Boos 1994). Otherwise the
    p-value is 1, or for q above 1/2 the bound of Chernoff and Hoeffding (1963).

    References
    ----------
    Berger, R. L. & Boos, D. D. (1994). P values maximized over a confidence set for the
    nuisance parameter. JASA 89, 1012-1016.

    Darroch, J. N. (1964). On the distribution of the number of successes in independent
    trials. Annals of Mathematical Statistics 35, 1317-1321.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex import paired_drop_p_value
    >>> y_true = np.zeros(1000, dtype=int)
    >>> y_reference, y_pred = y_true.copy(), y_true.copy()
    >>> y_pred[:5], y_reference[5:7] = 1, 1
    >>> round(paired_drop_p_value(y_true, y_reference, y_pred, max_drop=0.01), 3)
    0.067
    """
    check_open_interval(max_drop, -1, 1, "max_drop")
    check_open_interval(nuisance_error, 0, 1, "nuisance_error")
    lost, gained, n = _count(y_true, y_reference, y_pred)
    return drop_p_value(lost, gained, n, max_drop, nuisance_error)


def _count(
    y_true: ArrayLike, y_reference: ArrayLike, y_pred: ArrayLike
) -> tuple[int, int, int]:
    """Count rows that only the reference gets right, only the other, and all rows."""
    truth, reference, predicted = (
        _check_labels(labels, name)
        for name, labels in (
            ("y_true", y_true),
            ("y_reference", y_reference),
            ("y_pred", y_pred),
        )
    )
    check_consistent_length(truth, reference, predicted)
    if len(truth) == 0:
        raise ValueError("y_true holds 0 rows. Give at least one.")
    right, also = truth == reference, truth == predicted
    return int((right & ~also).sum()), int((also & ~right).sum()), len(truth)


def _check_labels(labels: ArrayLike, name: str) -> NDArray[np.generic]:
    column: NDArray[np.generic] = column_or_1d(labels)
    assert_all_finite(column, input_name=name)
    return column


def nuisance_error_of(error: float) -> float:
    """Return the part of an error that pays for the unknown share of differing rows."""
    return _NUISANCE_SHARE * error


def drop_p_value(
    n_lost: int, n_gained: int, n: int, max_drop: float, nuisance_error: float
) -> float:
    """Compute `paired_drop_p_value` from the counts."""
    differing, net = n_lost + n_gained, n_lost - n_gained
    upper = upper_limit(differing, n, nuisance_error)
    # Where the losses do not lie well below the bound, their probability need not rise
    # with the share of differing rows; there is nothing to be shown there.
    if net > (n - 1) * max_drop - 1:
        return 1.0
    if upper < max_drop:  # a drop that large needs more differing rows than there are
        return nuisance_error
    if upper <= 0.5:
        tail = _net_loss_cdf(net, n, upper, max_drop)
    else:
        tail = _chernoff(net, n, max_drop)
    return min(1.0, nuisance_error + tail)


def _net_loss_cdf(net: int, n: int, share: float, drop: float) -> float:
    """Compute P(losses - gains <= net) where a share of rows differs, at a drop."""
    # The number of differing rows is binomial; further than nine standard deviations
    # from its mean it has no mass that a float could tell.
    centre, reach = n * share, 9 * np.sqrt(n * share * (1 - share)) + 20
    low, high = max(0, int(centre - reach)), min(n, int(centre + reach) + 1)
    m = np.arange(low, high + 1)
    rise = np.log((n - m[:-1]) / m[1:]) + np.log(share / (1 - share))
    logs = np.append(0.0, np.cumsum(rise))
    mass = np.exp(logs - logs.max())
    # Of m such rows at most `most` may be lost.
    most = np.floor((m + net) / 2)
    given = (most >= m).astype(np.float64)
    some = (most >= 0) & (most < m)
    left, lost = (m - most)[some], most[some] + 1
    given[some] = betainc(left, lost, (1 - drop / share) / 2)
    return float(mass @ given / mass.sum())


def _chernoff(net: int, n: int, drop: float) -> float:
    """Bound of the same probability for any share of differing rows."""
    seen, mean = (1 + net / n) / 2, (1 + drop) / 2
    divergence = 0.0
    for x, y in ((seen, mean), (1 - seen, 1 - mean)):
        if x > 0:
            divergence += x * np.log(x / y)
    return float(np.exp(-n * divergence))


def drop_bound(n_lost: int, n_gained: int, n: int, error: float) -> float:
    """Find the smallest drop that the test rejects at a level, from the counts."""
    nuisance_error = nuisance_error_of(error)
    # The p-value falls with the drop, from 1 at the observed one.
    low, high = (n_lost - n_gained) / n, 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if drop_p_value(n_lost, n_gained, n, middle, nuisance_error) <= error:
            high = middle
        else:
            low = middle
    return high


def disagreement_p_value(n_disagree: int, n: int, max_risk: float) -> float:
    """Compute P(at most so many differing answers) at the allowed rate."""
    return float(bdtr(n_disagree, n, max_risk))


def fewest_rows(risk: str, max_risk: float, error: float) -> int:
    """Count the rows that certify a risk if not a single one of them is lost."""

    def p_value(n: int) -> float:
        if risk == "disagreement":
            return disagreement_p_value(0, n, max_risk)
        return drop_p_value(0, 0, n, max_risk, nuisance_error_of(error))

    high = 1
    while p_value(high) > error:
        high *= 2
    low = high // 2  # too few, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if p_value(middle) <= error else (middle, high)
    return high
