"""Slow, obvious versions of the tests behind risk control."""

from math import comb, lgamma, log

import numpy as np


def binomial_cdf(k, n, p):
    """P(Bin(n, p) <= k), term by term."""
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(min(k, n) + 1))


def slow_upper_limit(k, n, error):
    """Clopper-Pearson by bisection of its definition: P(Bin(n, p) <= k) = error."""
    if k == n:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if binomial_cdf(k, n, middle) > error else (low, middle)
        )
    return high


def outcome_grid(n):
    """All (lost, gained) that n rows can give."""
    return [(a, b) for a in range(n + 1) for b in range(n - a + 1)]


def outcome_probabilities(n, share, drop):
    """Trinomial probability of each outcome: `share` differ, `drop` is lost net."""
    lost, gained = (share + drop) / 2, (share - drop) / 2
    probabilities = {}
    for a, b in outcome_grid(n):
        total = lgamma(n + 1) - lgamma(a + 1) - lgamma(b + 1) - lgamma(n - a - b + 1)
        impossible = False
        for count, p in ((a, lost), (b, gained), (n - a - b, 1 - share)):
            if count and p <= 0:
                impossible = True
            elif count:
                total += count * log(p)
        probabilities[a, b] = 0.0 if impossible else np.exp(total)
    return probabilities


def slow_net_cdf(net, n, share, drop):
    """P(lost - gained <= net), by adding up outcomes."""
    probabilities = outcome_probabilities(n, share, drop)
    return sum(p for (a, b), p in probabilities.items() if a - b <= net)


def slow_drop_p_value(lost, gained, n, max_drop, nuisance_error, steps=60):
    """Largest probability over all shares that the confidence limit allows."""
    upper = slow_upper_limit(lost + gained, n, nuisance_error)
    shares = np.linspace(abs(max_drop), max(upper, abs(max_drop)), steps)
    shares = shares[(shares <= upper) & (shares > 0)]
    tails = [slow_net_cdf(lost - gained, n, share, max_drop) for share in shares]
    return nuisance_error + max(tails, default=0.0)
