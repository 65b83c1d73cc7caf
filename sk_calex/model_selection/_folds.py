"""Train a cascade a fold, and note what its stages say of the samples held out."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.model_selection import check_cv
from sklearn.utils import Bunch, _safe_indexing
from sklearn.utils.metadata_routing import process_routing
from sklearn.utils.validation import _check_method_params

from sk_calex.utils._parallel import for_workers, received

from ._curves import Outcomes
from ._estimators import Prepared, cascade_in, input_of

__all__ = ["outcomes_of", "outcomes_of_folds", "routed_params"]


def routed_params(
    search: Any, sample_weight: NDArray[np.float64] | None, params: Mapping[str, Any]
) -> Bunch:
    """Return what goes from a search to the estimator's fit and to the splitter."""
    given = dict(params)
    if sample_weight is not None:
        given["sample_weight"] = sample_weight
    if get_config()["enable_metadata_routing"]:
        return process_routing(search, "fit", **given)
    groups = given.pop("groups", None)
    split = {} if groups is None else {"groups": groups}
    unknown = sorted(set(given) - {"sample_weight"})
    if unknown:
        raise TypeError(
            f"fit got {unknown}, which are only passed on with metadata routing: "
            "sklearn.set_config(enable_metadata_routing=True)."
        )
    return Bunch(estimator=Bunch(fit=given), splitter=Bunch(split=split))


def outcomes_of_folds(
    prepared: Prepared,
    cv: Any,
    y: NDArray[Any],
    sample_weight: NDArray[np.float64] | None,
    routed: Bunch,
    *,
    n_jobs: int | None,
) -> list[Outcomes]:
    """Train on each fold, by joblib, and measure what its stages say of the rest."""
    # Rows of weight 0 are absent. Splits that were given speak of all rows.
    rows, args = np.arange(len(y)), routed.splitter.split
    weight = np.ones(len(y)) if sample_weight is None else sample_weight
    if cv is None or isinstance(cv, Integral):
        rows = np.flatnonzero(weight > 0)
    if len(rows) < len(y):
        args = _check_method_params(y, args, indices=rows)
    splitter = check_cv(cv, y[rows], classifier=True)
    splits = splitter.split(np.zeros((len(rows), 1)), y[rows], **args)
    call = for_workers(_fold)
    folds = Parallel(n_jobs=n_jobs)(
        delayed(call)(
            prepared.at(),
            prepared.X,
            y,
            sample_weight,
            routed.estimator.fit,
            rows[train],
            rows[held],
        )
        for train, held in splits
        if weight[rows[held]].any()
    )
    return [received(fold) for fold in folds]


def outcomes_of(
    fitted: Any, X: Any, y: NDArray[Any], sample_weight: NDArray[np.float64] | None
) -> Outcomes:
    """Measure what the stages of a fitted cascade say of samples."""
    return Outcomes.of(cascade_in(fitted), input_of(fitted, X), y, sample_weight)


def _fold(
    estimator: Any,
    X: Any,
    y: NDArray[Any],
    sample_weight: NDArray[np.float64] | None,
    params: Mapping[str, Any],
    train: NDArray[np.intp],
    held: NDArray[np.intp],
) -> Outcomes:
    """Train on one part; what the stages say of the other."""
    params = _check_method_params(X, params, indices=train)
    fitted = estimator.fit(_safe_indexing(X, train), y[train], **params)
    weight = None if sample_weight is None else sample_weight[held]
    return outcomes_of(fitted, _safe_indexing(X, held), y[held], weight)
