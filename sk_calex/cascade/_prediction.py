"""All that one run of a cascade says, and runs over batches that come one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sk_calex.calibration._answers import Signals
from sk_calex.calibration._exit_rule import Policy
from sk_calex.cascade._cascade_prediction import CascadePrediction
from sk_calex.cascade._run_on_samples import run_with_exits

__all__ = [
    "FirstBranchRecorder",
    "predict_batches",
    "predict_details",
]


class FirstBranchRecorder:
    """Exit rule that records what the first branch says of every row.

    Parameters
    ----------
    rule : Policy or None
        The rule that decides. None: every row exits at the first branch, so that
        nothing else runs.
    """

    def __init__(self, rule: Policy | None) -> None:
        self._rule = rule
        self._confidence: list[NDArray[np.float64]] = []
        self._predicted: list[NDArray[np.intp]] = []

    def exits(self, branch: int, said: Signals) -> NDArray[np.bool_]:
        """Decide as the rule does."""
        if branch == 0:
            self._confidence.append(said.confidence)
            self._predicted.append(said.predicted)
        if self._rule is None:
            return np.ones(len(said.predicted), dtype=bool)
        return self._rule.exits(branch, said)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Largest probability of the first branch, shape (n_samples,)."""
        return np.concatenate(self._confidence)

    @property
    def predicted(self) -> NDArray[np.intp]:
        """Class code that the first branch predicts, shape (n_samples,)."""
        return np.concatenate(self._predicted)


def predict_details(cascade: Any, X: Any) -> CascadePrediction:
    """Run a fitted cascade once, and return all that it says."""
    first = FirstBranchRecorder(cascade.calibrator_)
    proba, depth = run_with_exits(cascade, X, first)
    try:
        cost = cascade.depth_costs_[depth]
    except ValueError:  # of a kind that cannot be counted: `cost` says so
        cost = None
    labels = cascade.classes_[proba.argmax(axis=1)]
    return CascadePrediction(
        labels, proba, depth, cost, first.predicted, first.confidence
    )


class _Predictor(Protocol):
    def predict_details(self, X: Any) -> CascadePrediction: ...


def predict_batches(
    predictor: _Predictor, batches: Iterable[Any], batch_size: int
) -> Iterator[CascadePrediction]:
    """Run `predict_details` on one batch after another, as results are consumed.

    What is wrong with `batches` as a whole is said here, not at the first result.
    """
    if isinstance(batches, str | Mapping) or hasattr(batches, "__array__"):
        raise TypeError(
            f"batches is one {type(batches).__name__}, but predict_iter takes batches "
            "that come one by one. Give a list or generator of arrays or a DataLoader, "
            "or call predict_details(X) for a single array."
        )
    if isinstance(batches, Dataset) or hasattr(batches, "column_names"):
        # With a generator of its own it leaves torch's global random state alone.
        batches = DataLoader(
            cast("Dataset[Any]", batches),
            batch_size=batch_size,
            generator=torch.Generator(),
        )
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"batches={batches!r} cannot be iterated over. Give a list or generator of "
            "arrays, a DataLoader or a Dataset."
        )
    return _predict_each(predictor, iter(batches))


def _predict_each(
    predictor: _Predictor, batches: Iterator[Any]
) -> Iterator[CascadePrediction]:
    numbers = count()  # enumerate would hold a batch while the next one is read
    for batch in batches:
        i = next(numbers)
        try:
            said = predictor.predict_details(_samples_of(batch))
        except Exception as error:
            error.add_note(f"This was batch {i} of predict_iter, counted from 0.")
            raise
        del batch
        yield said
        del said


def _samples_of(batch: Any) -> Any:
    """Take the samples of a batch, which a DataLoader gives beside their labels."""
    if isinstance(batch, tuple | list) and len(batch) > 0:
        first = batch[0]
        if isinstance(first, Tensor | np.ndarray | Mapping):
            return first
    return batch
