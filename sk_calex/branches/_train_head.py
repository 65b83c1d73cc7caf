"""Train the head of a branch as its parameters say: solver, epochs, first weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from sk_calex.branches._heads import BranchHead
from sk_calex.branches._solvers import (
    MINI_BATCH_RATE,
    SMALL_SIZE,
    History,
    choose_full_batch,
    default_max_iter,
)
from sk_calex.branches._training import Batch, train_adam, train_full_batch
from sk_calex.utils._callbacks import Task
from sk_calex.utils._rows import take_rows

__all__ = ["choose_solver", "count_epochs", "init_head", "train_head"]

#: Prototypes are placed by at most this many rows, and bytes of them.
_INIT_ROWS = 4096
_INIT_BYTES = 512 * 2**20
_READ_ROWS = 1024


def choose_solver(branch: Any, batch: Batch) -> str:
    """Return the solver of a branch, with "auto" resolved by the size of the data."""
    solver: str = branch.solver
    if solver == "auto":
        small = len(batch) * batch.features.shape[1] <= SMALL_SIZE
        if not small or branch.early_stopping:
            return "adam"
        return choose_full_batch(branch._head_is_linear())
    if solver != "adam" and branch.early_stopping:
        raise ValueError(
            f"early_stopping=True needs mini-batches: use solver='adam', or "
            f"early_stopping=False with solver={solver!r}."
        )
    return solver


def count_epochs(branch: Any, n: int) -> int:
    """Return the most epochs or iterations on n rows, held-out ones included."""
    if branch.max_iter is not None:
        return int(branch.max_iter)
    if branch.solver_ != "adam":
        return default_max_iter(branch.solver_)
    if branch.early_stopping:
        # As train_test_split does, which refuses to leave none.
        n = max(1, n - math.ceil(branch.validation_fraction * n))
    # Twelve epochs suffice at tens of thousands of rows; few rows need about as
    # many updates as a few hundred, else the schedule ends before it has begun.
    return max(12, math.ceil(400 / max(1, n // min(branch.batch_size, n))))


def init_head(
    head: BranchHead, batch: Batch, shape: tuple[int, ...], generator: torch.Generator
) -> None:
    """Set the first weights of a head from a sample of the training rows."""
    rows = np.arange(len(batch))
    width = batch.features.shape[1]
    most = min(_INIT_ROWS, max(1, _INIT_BYTES // (8 * width)))
    if len(rows) > most:
        picked = torch.randperm(len(rows), generator=generator)[:most]
        rows = np.sort(picked.numpy())
    start = batch.take(rows)
    X = np.empty((len(start), width))
    for i in range(0, len(start), _READ_ROWS):
        part = start.rows[i : i + _READ_ROWS]
        X[i : i + _READ_ROWS] = take_rows(batch.features, part)
    head.double()
    head.init_from_data(
        torch.from_numpy(X).view(-1, *shape),
        torch.from_numpy(start.labels),
        sample_weight=torch.from_numpy(start.weight),
        generator=generator,
    )


def train_head(
    branch: Any,
    head: BranchHead,
    batch: Batch,
    shape: tuple[int, ...],
    generator: torch.Generator,
    device: torch.device,
    seeds: np.random.RandomState,
    epoch: Callable[[], Task],
) -> History:
    """Train a head in place by the solver of its branch.

    Parameters
    ----------
    branch : BaseBranch
        Says how: its parameters and its `solver_`.
    head : BranchHead
        The head, with its first weights.
    batch : Batch
        Training rows.
    shape : tuple of int
        Shape of one row's features.
    generator : torch.Generator
        Draws the mini-batches.
    device : torch.device
        Where to train.
    seeds : RandomState
        Draws the rows of `early_stopping`.
    epoch : callable
        Returns the step that an epoch is to callbacks.

    Returns
    -------
    history : History
        Losses.
    """
    epochs = count_epochs(branch, len(batch))
    if branch.solver_ != "adam":
        return train_full_batch(
            head,
            batch,
            shape,
            solver=branch.solver_,
            temperature=branch.temperature,
            alpha=branch.alpha,
            max_iter=epochs,
            learning_rate=branch.learning_rate or head.full_batch_rate,
            weight_decay=branch.weight_decay,
            device=device,
            verbose=bool(branch.verbose),
            epoch=epoch,
        )
    batch = replace(batch, weight=batch.weight / batch.weight.mean())
    validation = None
    if branch.early_stopping:
        trained, held = train_test_split(
            np.arange(len(batch)),
            test_size=branch.validation_fraction,
            stratify=batch.labels,
            random_state=seeds,
        )
        batch, validation = batch.take(np.sort(trained)), batch.take(np.sort(held))
    return train_adam(
        head,
        batch,
        shape,
        temperature=branch.temperature,
        alpha=branch.alpha,
        epochs=epochs,
        batch_size=branch.batch_size,
        learning_rate=branch.learning_rate or MINI_BATCH_RATE,
        weight_decay=branch.weight_decay,
        generator=generator,
        device=device,
        validation=validation,
        patience=branch.n_iter_no_change,
        tol=branch.tol,
        verbose=bool(branch.verbose),
        epoch=epoch,
    )
