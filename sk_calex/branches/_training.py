"""Training of one branch head: weights, soft targets, solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sk_calex.branches._heads import BranchHead
from sk_calex.branches._solvers import (
    History,
    adam_loop,
    full_batch_adam_loop,
    lbfgs_loop,
)
from sk_calex.utils._callbacks import Task
from sk_calex.utils._decoded import DecodedFeatures
from sk_calex.utils._rows import gather_rows, take_rows
from sk_calex.utils._validation import as_tensor

__all__ = [
    "Batch",
    "History",
    "RowGatherer",
    "branch_loss",
    "soften",
    "soften_rows",
    "train_adam",
    "train_full_batch",
]


_SOFT_ROWS = 256


@dataclass(frozen=True)
class Batch:
    """Hold training rows: where their features lie, labels, weights and soft targets.

    `features` has shape (n_all, width) and may be a column slice of a memory map, or
    `DecodedFeatures`; row i of the batch is its row ``rows[i]``, so that a subset of a
    large matrix is never copied. `soft` holds *softened* targets of shape
    (n_samples, n_classes), in float32 or float64, or computes those of rows; or is
    None.
    """

    features: NDArray[Any] | DecodedFeatures
    rows: NDArray[np.intp]
    labels: NDArray[np.int64]
    weight: NDArray[np.float64]
    soft: Any

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: NDArray[np.intp]) -> Batch:
        """Select some rows of the batch, over the same features."""
        soft = self.soft
        if soft is not None:
            soft = soft[index] if isinstance(soft, np.ndarray) else soft.take(index)
        return Batch(
            self.features,
            self.rows[index],
            self.labels[index],
            self.weight[index],
            soft,
        )


def soften(proba: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Compute ``softmax(z / T)`` from ``softmax(z)``, without the logits z.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.branches._training import soften
    >>> soften(np.array([[0.8, 0.2]]), temperature=2.0).round(3)
    array([[0.667, 0.333]])
    """
    # p ** (1 / T), by its logarithm relative to the row's largest so that 0 stays 0.
    with np.errstate(divide="ignore"):
        scaled = np.log(proba / proba.max(axis=1, keepdims=True)) / temperature
    powered = np.exp(scaled)
    return powered / powered.sum(axis=1, keepdims=True)


def soften_rows(
    proba: Any,
    rows: NDArray[np.intp],
    temperature: float,
    dtype: Any,
) -> NDArray[Any]:
    """Apply `soften` to some rows, a few at a time: no copy of all in float64.

    Parameters
    ----------
    proba : ndarray of float64, shape (n_all, n_classes), or what computes its rows
        Probabilities.
    rows : ndarray of intp, shape (n_samples,)
        Which rows.
    temperature : float
        T > 0.
    dtype : dtype
        Of the result.

    Returns
    -------
    soft : ndarray of shape (n_samples, n_classes)
        Softened probabilities.
    """
    soft = np.empty((len(rows), proba.shape[1]), dtype=dtype)
    for start in range(0, len(rows), _SOFT_ROWS):
        part = slice(start, start + _SOFT_ROWS)
        soft[part] = soften(proba[rows[part]], temperature)
    return soft


def branch_loss(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    soft: Tensor | None,
    *,
    temperature: float,
    alpha: float,
) -> Tensor:
    """Compute ``mean w * [alpha T^2 KL(q || softmax(z / T)) + (1 - alpha) CE(z, y)]``.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits z of the branch.
    labels : Tensor of int64, shape (n_samples,)
        Labels y.
    weight : Tensor of shape (n_samples,)
        Importance weights w, scaled to mean 1 over the training rows.
    soft : Tensor of shape (n_samples, n_classes) or None
        Softened targets q, `soften` of the backbone's probabilities. None: the loss is
        the weighted cross-entropy alone, whatever `alpha`.
    temperature : float
        T > 0.
    alpha : float
        Share of the soft target, in [0, 1].

    Returns
    -------
    loss : Tensor of shape ()
        The mean over the rows.

    Notes
    -----
    CalexNet's soft target (Aperstein & Apartsin 2026, Eq. 10, T = 4); the mixture with
    the labels is our definition.
    """
    if soft is None or alpha == 0:
        per_row = F.cross_entropy(logits, labels, reduction="none")
    else:
        # KL = cross-entropy minus the entropy of q, which has no gradient.
        entropy = -torch.xlogy(soft, soft).sum(dim=1)
        divergence = (
            F.cross_entropy(logits / temperature, soft, reduction="none") - entropy
        )
        per_row = alpha * temperature**2 * divergence
        if alpha < 1:
            hard = F.cross_entropy(logits, labels, reduction="none")
            per_row = per_row + (1 - alpha) * hard
    return (weight * per_row).mean()


class RowGatherer:
    """Gather mini-batches as float32 tensors on a device."""

    def __init__(
        self, batch: Batch, shape: tuple[int, ...], device: torch.device
    ) -> None:
        given: Any = batch.features
        self.features = as_tensor(given) if isinstance(given, np.ndarray) else given
        self.where = torch.from_numpy(batch.rows)
        self.labels = torch.from_numpy(np.ascontiguousarray(batch.labels))
        self.weight = torch.from_numpy(batch.weight).float()
        self.soft = batch.soft
        if isinstance(batch.soft, np.ndarray):
            self.soft = torch.from_numpy(batch.soft).float()
        self.shape, self.device = shape, device

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return features, labels, weights and soft targets of some rows."""
        x = gather_rows(self.features, self.where[rows], self.device, torch.float32)
        if self.soft is None or isinstance(self.soft, Tensor):
            soft = None if self.soft is None else self.soft[rows].to(self.device)
        else:
            soft = torch.from_numpy(self.soft[rows.numpy()]).to(self.device)
        return (
            x.view(-1, *self.shape),
            self.labels[rows].to(self.device),
            self.weight[rows].to(self.device),
            soft,
        )


def train_adam(
    head: BranchHead,
    batch: Batch,
    shape: tuple[int, ...],
    *,
    temperature: float,
    alpha: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    generator: torch.Generator,
    device: torch.device,
    validation: Batch | None = None,
    patience: int = 5,
    tol: float = 1e-4,
    verbose: bool = False,
    epoch: Callable[[], Task] = Task,
) -> History:
    """Train `head` in place with mini-batches; see `adam_loop`.

    With `validation` rows the weights of the best epoch are kept.
    """
    gather = RowGatherer(batch, shape, device)

    def loss_of(rows: Tensor) -> Tensor:
        x, y, w, soft = gather(rows)
        return branch_loss(head(x), y, w, soft, temperature=temperature, alpha=alpha)

    evaluate = None
    if validation is not None:
        evaluate = partial(
            _evaluate, head, validation, shape, device, temperature, alpha
        )
    return adam_loop(
        head,
        loss_of,
        len(batch),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        generator=generator,
        evaluate=evaluate,
        patience=patience,
        tol=tol,
        verbose=verbose,
        epoch=epoch,
    )


def train_full_batch(
    head: BranchHead,
    batch: Batch,
    shape: tuple[int, ...],
    *,
    solver: str,
    temperature: float,
    alpha: float,
    max_iter: int,
    learning_rate: float,
    weight_decay: float,
    device: torch.device,
    verbose: bool = False,
    epoch: Callable[[], Task] = Task,
) -> History:
    """Train `head` in place on all rows at once, in float64.

    `solver` is "lbfgs" (`lbfgs_loop`) or "adam_full_batch" (`full_batch_adam_loop`).

    Integer weights are repetition, in the loss and in the normalisation's statistics
    alike, and the order of the rows does not matter beyond rounding.
    """
    head.double()
    head.set_momentum(1.0)  # the running statistics become those of the last step
    weight = torch.from_numpy(batch.weight).to(device)
    head.set_row_weights(weight)
    scale = weight / weight.mean()
    features = np.asarray(take_rows(batch.features, batch.rows), dtype=np.float64)
    x = torch.from_numpy(features).to(device).view(-1, *shape)
    y = torch.from_numpy(np.ascontiguousarray(batch.labels)).to(device)
    soft = None if batch.soft is None else torch.from_numpy(batch.soft).to(device)

    def loss_of() -> Tensor:
        return branch_loss(
            head(x), y, scale, soft, temperature=temperature, alpha=alpha
        )

    if solver == "lbfgs":
        history = lbfgs_loop(
            head, loss_of, max_iter=max_iter, weight_decay=weight_decay, verbose=verbose
        )
    else:
        history = full_batch_adam_loop(
            head,
            loss_of,
            max_iter=max_iter,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            verbose=verbose,
            epoch=epoch,
        )
    head.set_row_weights(None)
    return history  # the head stays in float64: small data, exact weights


@torch.no_grad()
def _evaluate(
    head: nn.Module,
    batch: Batch,
    shape: tuple[int, ...],
    device: torch.device,
    temperature: float,
    alpha: float,
    size: int = 1024,
) -> float:
    head.eval()
    rows, total = RowGatherer(batch, shape, device), 0.0
    for start in range(0, len(batch), size):
        chunk = torch.arange(start, min(start + size, len(batch)))
        x, y, w, soft = rows(chunk)
        loss = branch_loss(head(x), y, w, soft, temperature=temperature, alpha=alpha)
        total += float(loss) * len(chunk)
    return total / len(batch)
