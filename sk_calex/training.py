"""The one training loop of the branch heads: weights, soft targets, two solvers."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from sk_calex._validation import as_tensor
from sk_calex.heads import BranchHead

__all__ = [
    "Batch",
    "History",
    "RowGatherer",
    "branch_loss",
    "soften",
    "train_adam",
    "train_lbfgs",
]


@dataclass(frozen=True)
class Batch:
    """Training rows: where their features lie, labels, weights and soft targets.

    `features` has shape (n_all, width) and may be a column slice of a memory map; row i
    of the batch is its row ``rows[i]``, so that a subset of a large matrix is never
    copied. `soft` holds *softened* targets of shape (n_samples, n_classes), or is None.
    """

    features: NDArray[Any]
    rows: NDArray[np.intp]
    labels: NDArray[np.int64]
    weight: NDArray[np.float64]
    soft: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: NDArray[np.intp]) -> Batch:
        """Some rows of the batch, over the same features."""
        return Batch(
            self.features,
            self.rows[index],
            self.labels[index],
            self.weight[index],
            None if self.soft is None else self.soft[index],
        )


@dataclass
class History:
    """Course of a training run: mean loss per epoch (Adam) or evaluation (L-BFGS)."""

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    n_iter: int = 0


def soften(proba: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """``softmax(z / T)`` from ``softmax(z)``: the logits need not be known.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.training import soften
    >>> soften(np.array([[0.8, 0.2]]), temperature=2.0).round(3)
    array([[0.667, 0.333]])
    """
    # p ** (1 / T), by its logarithm relative to the row's largest so that 0 stays 0.
    with np.errstate(divide="ignore"):
        scaled = np.log(proba / proba.max(axis=1, keepdims=True)) / temperature
    powered = np.exp(scaled)
    return powered / powered.sum(axis=1, keepdims=True)


def branch_loss(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    soft: Tensor | None,
    *,
    temperature: float,
    alpha: float,
) -> Tensor:
    """``mean w * [alpha T^2 KL(q || softmax(z / T)) + (1 - alpha) CE(z, y)]``.

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
    """Gathers mini-batches as tensors on the device, in the head's dtype."""

    def __init__(
        self, batch: Batch, shape: tuple[int, ...], device: torch.device
    ) -> None:
        self.features = as_tensor(batch.features)
        self.where = torch.from_numpy(batch.rows)
        self.labels = torch.from_numpy(np.ascontiguousarray(batch.labels))
        self.weight = torch.from_numpy(batch.weight).float()
        self.soft = None if batch.soft is None else torch.from_numpy(batch.soft).float()
        self.shape, self.device = shape, device

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Features, labels, weights and soft targets of some rows of the batch."""
        # index_select on the strided view copies whole rows: no pass over the rest.
        x = self.features.index_select(0, self.where[rows])
        x = x.to(self.device, torch.float32)
        soft = None if self.soft is None else self.soft[rows].to(self.device)
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
) -> History:
    """Train `head` in place with AdamW under a one-cycle schedule.

    The last, smaller batch of an epoch is left out (another one each epoch), except
    where there is only one. With `validation` rows the weights of the best epoch are
    kept, and training ends after `patience` epochs without a gain of `tol`.
    """
    rows, n = RowGatherer(batch, shape, device), len(batch)
    size = min(batch_size, n)
    per_epoch = n // size
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=max(2, epochs * per_epoch)
    )
    history, best, best_state, waited = History(), math.inf, None, 0
    for _ in tqdm(range(epochs), unit="epoch", disable=not verbose):
        head.train()
        order = torch.randperm(n, generator=generator)
        total = torch.zeros((), device=device)
        for start in range(0, per_epoch * size, size):
            x, y, w, soft = rows(order[start : start + size])
            optimizer.zero_grad(set_to_none=True)
            loss = branch_loss(
                head(x), y, w, soft, temperature=temperature, alpha=alpha
            )
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        history.loss.append(float(total) / per_epoch)
        history.n_iter += 1
        if not math.isfinite(history.loss[-1]):
            raise ValueError(
                f"the training loss became {history.loss[-1]} in epoch "
                f"{history.n_iter}. Lower learning_rate (now {learning_rate}) or "
                "scale the features."
            )
        if validation is None:
            continue
        history.validation_loss.append(
            _evaluate(head, validation, shape, device, temperature, alpha)
        )
        if history.validation_loss[-1] < best - tol:
            best, waited = history.validation_loss[-1], 0
            best_state = copy.deepcopy(head.state_dict())
        else:
            waited += 1
            if waited >= patience:
                break
    if best_state is not None:
        head.load_state_dict(best_state)
    head.eval()
    return history


def train_lbfgs(
    head: BranchHead,
    batch: Batch,
    shape: tuple[int, ...],
    *,
    temperature: float,
    alpha: float,
    max_iter: int,
    weight_decay: float,
    device: torch.device,
    tol: float = 1e-9,
) -> History:
    """Train `head` in place with full-batch L-BFGS in float64: no randomness.

    Integer weights are repetition, in the loss and in the normalisation's statistics
    alike, and the order of the rows does not matter beyond rounding. The penalty is
    ``weight_decay / 2 * ||parameters||^2`` on the mean loss.
    """
    head.double().train()
    head.set_momentum(1.0)  # the running statistics become those of the last step
    weight = torch.from_numpy(batch.weight).to(device)
    head.set_row_weights(weight)
    scale = weight / weight.mean()
    x = torch.from_numpy(batch.features[batch.rows].astype(np.float64)).to(device)
    x = x.view(-1, *shape)
    y = torch.from_numpy(np.ascontiguousarray(batch.labels)).to(device)
    soft = None if batch.soft is None else torch.from_numpy(batch.soft).to(device)
    parameters = list(head.parameters())
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=max_iter,
        history_size=20,
        tolerance_grad=tol,
        tolerance_change=tol,
        line_search_fn="strong_wolfe",
    )
    history = History()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = branch_loss(
            head(x), y, scale, soft, temperature=temperature, alpha=alpha
        )
        penalty = sum((p.square().sum() for p in parameters), start=loss.new_zeros(()))
        objective = loss + weight_decay / 2 * penalty
        objective.backward()
        history.loss.append(float(loss.detach()))
        return objective

    optimizer.step(closure)
    with torch.no_grad():
        head(x)  # statistics at the final parameters, not at the last trial step
    history.n_iter = int(optimizer.state[parameters[0]]["n_iter"])
    head.set_row_weights(None)
    head.eval()  # and stays in float64: small data, exact weights
    return history


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
