"""What a fit leaves on an estimator: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["all_or_nothing", "drop_fitted_state", "fitted_state"]


def fitted_state(estimator: Any) -> dict[str, Any]:
    """Return the attributes that a fit has set: those whose names end in an underscore.

    Private ones (``_head_macs_``) follow the same rule.
    """
    return {
        name: value
        for name, value in vars(estimator).items()
        if name.endswith("_") and not name.startswith("__")
    }


def drop_fitted_state(estimator: Any) -> None:
    """Make an estimator unfitted again."""
    for name in fitted_state(estimator):
        delattr(estimator, name)


@contextmanager
def all_or_nothing(estimator: Any) -> Iterator[None]:
    """Wrap a fit: drop the last fit's attributes first, and those of one that fails.

    A refused or interrupted fit would otherwise leave a mixture of two fits, which
    predicts wrong labels without an error. Afterwards the estimator is not fitted, so
    that `predict` raises `NotFittedError`. `KeyboardInterrupt` counts as a failure.

    Parameters
    ----------
    estimator : estimator
        The estimator being fitted.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sk_calex.utils._fitted_state import all_or_nothing
    >>> model = LogisticRegression().fit([[0], [1]], [0, 1])
    >>> try:
    ...     with all_or_nothing(model):
    ...         model.classes_ = [0, 1, 2]
    ...         raise ValueError
    ... except ValueError:
    ...     hasattr(model, "classes_"), hasattr(model, "coef_")
    (False, False)
    """
    drop_fitted_state(estimator)
    try:
        yield
    except BaseException:
        drop_fitted_state(estimator)
        raise
