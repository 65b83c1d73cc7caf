"""What front.py trains, and what the stages of each fit say; each fit is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _front_tasks import Task, TestLabels
from numpy.typing import NDArray
from sklearn.base import clone

from sk_calex import BranchClassifier, CascadeClassifier
from sk_calex.baselines import (
    BoostNetClassifier,
    BTSEEClassifier,
    NoAlignmentClassifier,
    PTEENetClassifier,
    ZTWClassifier,
)
from sk_calex.branches._defaults import default_branches
from sk_calex.calibration import StageTable
from sk_calex.cascade._costs import stage_and_head_macs
from sk_calex.cascade._run_on_samples import stage_table

DEFAULT_TAPS = (0, 3, 5)  # as many as taps="auto" proposes, and about there
COST_WEIGHT = 1.0  # of PTEENet
# Small batches at a high rate: more updates, where there are few epochs.
QUICK = {"batch_size": 128, "learning_rate": 0.006}
DEFAULT = {"batch_size": 256, "learning_rate": None}  # the library's


@dataclass(frozen=True)
class Budget:
    """How a task is trained: the same for every method.

    Parameters
    ----------
    widths
        Channels of the two convolutions of a head.
    epochs
        Passes over the training rows.
    settings
        Size of the batches and rate.
    """

    widths: tuple[int, int]
    epochs: int
    settings: Mapping[str, Any] = field(default_factory=lambda: QUICK)

    @property
    def training(self) -> dict[str, Any]:
        """Parameters of what is trained."""
        return {"solver": "adam", "max_iter": self.epochs, **self.settings}


LARGE = Budget((32, 48), 2)
BUDGETS = {
    "resnet18_cifar100_long": Budget((64, 96), 8, DEFAULT),
    "resnet32_cifar10": Budget((24, 32), 6),
    "transfer": Budget((24, 32), 12),
    "efficientnet_cifar100": Budget((24, 32), 6),
}  # LARGE: all others


def make_estimators(budget: Budget, shapes: Any, macs: Any, n_classes: int) -> Any:
    """Return the estimator of each fit, without a seed, by its name.

    "soft" and "labels" are one cascade with `alpha` 0.5 and 0 on all branches. Without
    survivor weights a branch depends on no other one, so that all choices of `alpha`
    for each branch are made of these two.
    """
    head_params = {"widths": budget.widths}
    training = budget.training
    conv = BranchClassifier("conv", head_params=head_params, **training)
    conv1d = BranchClassifier(
        "conv1d", head_params={"width": budget.widths[1]}, **training
    )
    # The thresholds of the fit itself are not used: any number spares a search.
    ours = CascadeClassifier(branch=conv, alignment="none", margin=0.0)
    early = len(shapes) // 2
    mixed = [0.5] * early + [0.0] * (len(shapes) - early)
    by_cost = [
        branch.set_params(**training)
        for branch in default_branches(shapes, macs, n_classes)
    ]
    estimators = {
        "soft": clone(ours).set_params(alpha=0.5),
        "labels": clone(ours).set_params(alpha=0.0),
        "boostnet": BoostNetClassifier(head="conv", head_params=head_params),
        "added": BoostNetClassifier(head="conv", head_params=head_params, alpha=mixed),
        "defaults": CascadeClassifier(branch=by_cost, margin=0.0),
        "ztw": ZTWClassifier(width=budget.widths[1]),
        "reference": NoAlignmentClassifier(branch=conv),
        "btsee": BTSEEClassifier(branch=conv1d),
        "pteenet": PTEENetClassifier(widths=budget.widths, cost_weight=COST_WEIGHT),
    }
    for estimator in estimators.values():
        estimator.set_params(input="features")
        if "solver" in estimator.get_params(deep=False):
            estimator.set_params(**training)
    return estimators


class Answers(NamedTuple):
    """Probabilities of all stages, in float64, and a method's own gate."""

    proba: NDArray[np.float64]  # (n_stages, n_samples, n_classes)
    gate: NDArray[np.float64] | None = None  # (n_stages, n_samples)

    def take(self, rows: Any) -> Answers:
        """Keep some samples."""
        gate = None if self.gate is None else self.gate[:, rows]
        return Answers(self.proba[:, rows], gate)

    def table(self) -> StageTable:
        """What exit rules read."""
        table = StageTable.from_probabilities(self.proba)
        if self.gate is not None:
            table.gate[:] = self.gate
        return table


class Fit(NamedTuple):
    """What a fit says of the calibration rows and the test set, and what it costs."""

    calibration: Answers
    test: Answers
    stages: NDArray[np.float64]  # MACs of each stage
    heads: NDArray[np.float64]  # MACs of each head
    seconds: float

    def with_branches(self, other: Fit, others: Sequence[int]) -> Fit:
        """Take some branches of another fit of the same heads in place of these."""
        parts = []
        for mine, theirs in (
            (self.calibration, other.calibration),
            (self.test, other.test),
        ):
            proba = mine.proba.copy()
            proba[list(others)] = theirs.proba[list(others)]
            parts.append(Answers(proba))
        seconds = self.seconds + other.seconds
        return self._replace(calibration=parts[0], test=parts[1], seconds=seconds)


def labels_of(
    load: Callable[[], Task], task_name: str, folder: Path
) -> tuple[NDArray[np.int64], TestLabels]:
    """Class codes of the calibration rows, and those of the test set under seal.

    Kept beside the fits: where these are there, no feature has to be read.
    """
    path = folder / f"{task_name}-labels.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        load().save_labels(path)
    with np.load(path) as file:
        return file["calibration"], TestLabels(file["test"])


def fit_or_read(
    load: Callable[[], Task], task_name: str, name: str, seed: int, folder: Path
) -> Fit:
    """Train one fit, unless its answers lie in the folder."""
    path = folder / f"{task_name}-{name}-seed{seed}.npz"
    if not path.exists():
        _train(load(), task_name, name, seed, path)
    with np.load(path) as file:
        parts = []
        for part in ("calibration", "test"):
            proba = file[part].astype(np.float64)
            gate = file.get(f"{part}_gate")
            parts.append(Answers(proba / proba.sum(axis=2, keepdims=True), gate))
        return Fit(*parts, file["stages"], file["heads"], float(file["seconds"]))


def _train(task: Task, task_name: str, name: str, seed: int, path: Path) -> None:
    X, test_X, layout = task.X, task.test_X, task.X.layout
    if name == "defaults":
        names = [layout.names[k] for k in DEFAULT_TAPS]
        columns = layout.select_columns(names)
        layout = layout.select(names)
        X, test_X = (
            type(task.X).wrap(np.asarray(part)[:, columns], layout)
            for part in (X, test_X)
        )
    budget = BUDGETS.get(task_name, LARGE)
    n_classes = len(np.unique(task.y))
    estimators = make_estimators(budget, layout.shapes, layout.stage_macs, n_classes)
    estimator = estimators[name].set_params(cv=task.split, random_state=seed)
    if task.final_estimator is not None:
        estimator.set_params(final_estimator=task.final_estimator)
    start = time.process_time()
    estimator.fit(X, task.y)
    seconds = time.process_time() - start
    arrays = {}
    for part, rows in (("calibration", X[task.calibration]), ("test", test_X)):
        arrays[part] = estimator.stage_probabilities(rows).astype(np.float32)
        gate = stage_table(estimator, rows).gate if name == "pteenet" else None
        if gate is not None:
            arrays[f"{part}_gate"] = gate
    stages, heads = stage_and_head_macs(estimator)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez(
        temporary, **arrays, stages=stages, heads=heads, seconds=np.float64(seconds)
    )
    temporary.replace(path)
