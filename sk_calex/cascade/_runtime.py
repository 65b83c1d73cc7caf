"""One runtime, two ways in: staged execution on samples, or cached features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_calex.backbone._layout import TapLayout
from sk_calex.backbone._runner import Runner
from sk_calex.backbone._samples import Samples
from sk_calex.branches._as_branch import Probabilities
from sk_calex.calibration._answers import StageAnswer, StageTable
from sk_calex.calibration._exit_rule import Policy
from sk_calex.utils._decoded import DecodedFeatures
from sk_calex.utils._rows import as_rows, take_rows

__all__ = [
    "Answer",
    "cached_sources",
    "every_answer",
    "independent",
    "run_cascade",
    "staged_sources",
    "tabulate",
]

_CACHED_ROWS = 1024
# Of plain 2-D data rows are small, and a call of scikit-learn's takes milliseconds.
_PLAIN_ROWS = 65536

Answer = Callable[[Tensor, "StageAnswer | None"], StageAnswer]
"""Features of one stage, and what the stage before said, to what this one says."""


class Source(Protocol):
    """A batch of samples on its way through the stages."""

    def advance(self, stage: int) -> Any:
        """Return the features, at a stage, of the samples still under way.

        A tensor, but for sparse or framed rows of plain 2-D data.
        """
        ...

    def skip(self, stage: int) -> None:
        """Go past a stage whose features nobody needs."""
        ...

    def keep(self, rows: NDArray[np.intp]) -> None:
        """Go on with these of them only."""
        ...


class _CachedSource:
    """Rows of a feature matrix: advancing is looking at other columns."""

    def __init__(self, features: Any, layout: TapLayout) -> None:
        self._features, self._layout = features, layout

    def advance(self, stage: int) -> Any:
        if isinstance(self._features, DecodedFeatures):
            block = as_rows(self._layout.block(self._features, stage))
        elif isinstance(self._features, Tensor):
            block = self._features[:, self._layout.columns(stage)]
        else:  # all columns are every stage's
            return self._features
        if stage < self._layout.n_taps:
            return block.reshape(-1, *self._layout.shapes[stage])
        return block

    def skip(self, stage: int) -> None:
        pass

    def keep(self, rows: NDArray[np.intp]) -> None:
        if isinstance(self._features, Tensor):
            self._features = self._features[torch.from_numpy(rows)]
        else:
            self._features = take_rows(self._features, rows)


class _StagedSource:
    """A batch inside the module: advancing runs the next stage on the survivors."""

    def __init__(self, runner: Runner, batch: Any) -> None:
        self._runner = runner
        self._state = runner.start(batch)

    def advance(self, stage: int) -> Tensor:
        features, self._state = self._runner.advance(stage, self._state)
        return features

    def skip(self, stage: int) -> None:
        self._state = self._runner.skip(stage, self._state)

    def keep(self, rows: NDArray[np.intp]) -> None:
        self._state = self._runner.keep(self._state, rows)


def cached_sources(
    features: Any, layout: TapLayout, size: int | None = None
) -> Iterator[tuple[slice, Source]]:
    """Yield batches of a feature matrix, of sparse rows or of a data frame."""
    if size is None:
        size = _PLAIN_ROWS if layout.shared else _CACHED_ROWS
    for start in range(0, features.shape[0], size):
        rows = slice(start, min(start + size, features.shape[0]))
        part = take_rows(features, rows)
        # Of features that are decoded each stage decodes its own columns.
        part = part if isinstance(part, DecodedFeatures) else as_rows(part)
        yield rows, _CachedSource(part, layout)


def staged_sources(runner: Runner, samples: Samples) -> Iterator[tuple[slice, Source]]:
    """Yield batches of samples, run through a module stage by stage.

    To be used up inside ``with runner.inference_mode()``. Entered here, that would
    outlive an error in the caller for as long as its traceback is kept.
    """
    batches = samples.batches(runner.settings.batch_size)
    while True:
        with torch.inference_mode(False):  # a Dataset may keep what it reads
            batch = next(batches, None)
        if batch is None:
            return
        yield batch[0], _StagedSource(runner, batch[1])


def independent(probabilities: Probabilities) -> Answer:
    """Return the answer of a stage that does not build on those before it."""
    return lambda features, before: StageAnswer(probabilities(features), before)


def run_cascade(
    sources: Iterable[tuple[slice, Source]],
    answers: Sequence[Answer | None],
    policy: Policy,
    n_samples: int,
    n_classes: int,
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Answer every sample at the first branch where the policy lets it exit.

    Parameters
    ----------
    sources : iterable of (slice, Source)
        Batches.
    answers : sequence of Answer or None
        One for each branch, and that of the last stage. None: a branch that rests, of
        which the stage runs for those after it.
    policy : Policy
        The exit rule.
    n_samples, n_classes : int
        Sizes of the result.

    Returns
    -------
    proba : ndarray of float64, shape (n_samples, n_classes)
        Probabilities of the stage that answered.
    depth : ndarray of intp, shape (n_samples,)
        Index of that stage; the number of branches for the last.
    """
    proba = np.empty((n_samples, n_classes))
    depth = np.empty(n_samples, dtype=np.intp)
    last = len(answers) - 1
    for rows, source in sources:
        alive = np.arange(rows.start, rows.stop)
        said = None
        for stage, answer in enumerate(answers):
            if answer is None:
                source.skip(stage)
                continue
            said = answer(source.advance(stage), said)
            if stage == last:
                proba[alive], depth[alive] = said.proba, stage
                break
            exits = policy.exits(stage, said)
            if not exits.any():
                continue
            out = alive[exits]
            proba[out], depth[out] = said.proba[exits], stage
            on = np.flatnonzero(~exits)
            if len(on) == 0:
                break
            alive, said = alive[on], said.keep(on)
            source.keep(on)
    return proba, depth


def every_answer(
    sources: Iterable[tuple[slice, Source]], answers: list[Answer]
) -> Iterator[tuple[int, slice, StageAnswer]]:
    """Yield stage, rows and answer: every stage, every sample, no exits."""
    for rows, source in sources:
        said = None
        for stage, answer in enumerate(answers):
            said = answer(source.advance(stage), said)
            yield stage, rows, said


def tabulate(
    sources: Iterable[tuple[slice, Source]],
    answers: list[Answer],
    n_samples: int,
    n_classes: int,
) -> StageTable:
    """Collect what every stage answers to every sample, without exits.

    Parameters
    ----------
    sources, answers, n_samples, n_classes
        As of `run_cascade`.

    Returns
    -------
    table : StageTable
        Of all branches and the last stage.
    """
    table = StageTable.empty(len(answers), n_samples, n_classes)
    for stage, rows, said in every_answer(sources, answers):
        table.put(stage, rows, said)
    return table
