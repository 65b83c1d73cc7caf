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
from sk_calex.cascade._costs import depth_prices
from sk_calex.cascade._run_on_samples import run_with_exits

__all__ = [
    "first_stage",
    "predict_batches",
    "predict_details",
]


class _Recorder:
    """Exit rule that decides as another one, and records what one branch says."""

    def __init__(self, rule: Policy, branch: int, heads: NDArray[np.bool_]) -> None:
        self._rule, self._branch, self._heads = rule, branch, heads
        self._said: list[tuple[NDArray[np.intp], NDArray[np.float64]]] = []

    def evaluated_branches(self) -> NDArray[np.bool_]:
        """Tell which branches have to answer."""
        return self._heads

    def exits(self, branch: int, said: Signals) -> NDArray[np.bool_]:
        """Decide as the rule does."""
        if branch == self._branch:
            self._said.append((said.predicted, said.confidence))
        return self._rule.exits(branch, said)

    def recorded(self) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Class codes and largest probabilities, in the order of the rows."""
        predicted, confidence = zip(*self._said, strict=True)
        return np.concatenate(predicted), np.concatenate(confidence)


def first_stage(cascade: Any, rule: Policy) -> int:
    """Return the first stage that answers: every sample, as none has exited before."""
    return int(np.append(cascade._running_heads(rule), True).argmax())


def predict_details(
    cascade: Any, X: Any, watched: int | None = None
) -> CascadePrediction:
    """Run a fitted cascade once, and return all that it says.

    The head of the stage `watched` runs also where the exit rule does not need it.
    """
    rule = cascade.calibrator_
    heads, first = cascade._running_heads(rule), first_stage(cascade, rule)
    if watched is not None and watched < first:
        heads[watched], first = True, watched
    recorder = _Recorder(rule, first, heads)
    proba, depth = run_with_exits(cascade, X, recorder)
    codes, confidence = proba.argmax(axis=1), proba.max(axis=1)
    predicted = codes
    if first < len(heads):  # else the last stage answers alone
        predicted, confidence = recorder.recorded()
    try:
        cost = depth_prices(cascade, rule)[0][depth]
    except ValueError:  # of a kind that cannot be counted: `cost` says so
        cost = None
    labels = cascade.classes_[codes]
    return CascadePrediction(labels, proba, depth, cost, predicted, confidence, first)


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
