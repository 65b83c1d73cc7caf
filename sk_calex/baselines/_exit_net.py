"""Heads on all taps that are trained together, for methods whose branches interact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sk_calex.backbone._layout import TapLayout
from sk_calex.branches._heads import build_head
from sk_calex.branches._layers import BranchHead, WeightedBatchNorm
from sk_calex.branches._solvers import (
    MINI_BATCH_RATE,
    SMALL_SIZE,
    History,
    adam_loop,
    choose_full_batch,
    default_max_iter,
    full_batch_adam_loop,
    lbfgs_loop,
)
from sk_calex.calibration._answers import StageAnswer
from sk_calex.utils._callbacks import current_task
from sk_calex.utils._flops import count_macs
from sk_calex.utils._modes import inference_mode_for
from sk_calex.utils._rows import gather_rows
from sk_calex.utils._validation import check_finite, softmax64

__all__ = ["ExitNet", "ExitRows", "LabelNet", "fit_exit_net"]


class ExitNet(nn.Module):
    """Base of the networks of branches: one head for each tap, and one loss for all.

    A subclass fills `heads` and writes `loss`; where the outputs of a branch are more
    than class logits, or build on an earlier branch, also `exit` and `read_tensors`;
    and where something is fitted to the trained heads, `finish`.

    Parameters
    ----------
    shapes : sequence of tuple of int
        Shape of one sample's features at each tap.
    n_classes : int
        Number of classes.

    See Also
    --------
    JointCascade : Trains such a network and fits its exit rule.

    Notes
    -----
    `memory` is what a branch passes to the next: a tensor with a row a sample, so that
    samples can leave in between.

    `separable` says that each branch has a loss of its own, whose gradient goes to its
    head alone, and that `loss` is their sum, over the first few branches if given only
    those. Full-batch training then takes one branch after the other: where a branch
    builds on what it may not change, the gradient is not that of the whole sum, and a
    line search along it would be misled.

    Our definition of what such methods share.

    Examples
    --------
    >>> import torch
    >>> from sk_calex.baselines import ExitNet
    >>> class LinearHeads(ExitNet):
    ...     def __init__(self, shapes, n_classes):
    ...         super().__init__(shapes, n_classes)
    ...         self.heads = torch.nn.ModuleList(
    ...             torch.nn.Linear(shape[0], n_classes) for shape in shapes
    ...         )
    ...     def loss(self, outputs, labels, final, weight):
    ...         loss = torch.nn.functional.cross_entropy(outputs[-1], labels)
    ...         return loss
    >>> net = LinearHeads([(4,), (8,)], n_classes=3)
    >>> [outputs.shape[1] for outputs in net([torch.ones(5, 4), torch.ones(5, 8)])]
    [3, 3]
    """

    separable: ClassVar[bool] = False
    heads: nn.ModuleList

    def __init__(self, shapes: Sequence[tuple[int, ...]], n_classes: int) -> None:
        super().__init__()
        self.shapes, self.n_classes = tuple(shapes), n_classes

    def exit(
        self, branch: int, tap: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the outputs of a branch, and what it passes to the next.

        Parameters
        ----------
        branch : int
            Index of the branch.
        tap : Tensor of shape (n_samples, *shape)
            Features of its tap.
        memory : Tensor of shape (n_samples, ...) or None
            From the branch before; None at the first.

        Returns
        -------
        outputs : Tensor of shape (n_samples, n_outputs)
            Class logits, and whatever `loss` and `read` want beside them.
        memory : Tensor of shape (n_samples, ...) or None
            For the next branch.
        """
        return self.heads[branch](tap), None

    def loss(
        self, outputs: list[Tensor], labels: Tensor, final: Tensor, weight: Tensor
    ) -> Tensor:
        """Compute the mean loss of some rows.

        Parameters
        ----------
        outputs : list of Tensor of shape (n_samples, n_outputs)
            Of all branches.
        labels : Tensor of int64, shape (n_samples,)
            True class codes.
        final : Tensor of shape (n_samples, n_classes)
            Probabilities of the last stage.
        weight : Tensor of shape (n_samples,)
            Sample weights of mean 1 over the training rows.

        Returns
        -------
        loss : Tensor of shape ()
            The mean over the rows.
        """
        raise NotImplementedError

    def read_tensors(
        self, branch: int, outputs: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Turn the outputs of a branch into class logits and the method's own gate.

        Parameters
        ----------
        branch : int
            Index of the branch.
        outputs : Tensor of shape (n_samples, n_outputs)
            As `exit` returns them, on the CPU.

        Returns
        -------
        logits : Tensor of shape (n_samples, n_classes)
            Their softmax are the probabilities.
        gate : Tensor of float64, shape (n_samples,), or None
            Confidence that the method itself computes; None where it has none.
        """
        return outputs, None

    def read(
        self, branch: int, outputs: Tensor
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Turn the outputs of a branch into probabilities and the method's own gate.

        Parameters
        ----------
        branch : int
            Index of the branch.
        outputs : Tensor of shape (n_samples, n_outputs)
            As `exit` returns them.

        Returns
        -------
        proba : ndarray of float64, shape (n_samples, n_classes)
            Probabilities.
        gate : ndarray of float64, shape (n_samples,), or None
            Confidence that the method itself computes; None where it has none.
        """
        logits, gate = self.read_tensors(branch, outputs.cpu())
        return softmax64(logits), None if gate is None else gate.detach().numpy()

    def finish(self, rows: ExitRows) -> None:
        """Fit what builds on the trained heads, on the rows that trained them.

        Parameters
        ----------
        rows : ExitRows
            The training rows, weights of mean 1.
        """

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Compute the outputs of all branches.

        Parameters
        ----------
        taps : sequence of Tensor of shape (n_samples, *shape)
            Features of each tap.

        Returns
        -------
        outputs : list of Tensor of shape (n_samples, n_outputs)
            As of `exit`, for each branch.
        """
        memory, outputs = None, []
        for k, tap in enumerate(taps):
            output, memory = self.exit(k, tap, memory)
            outputs.append(output)
        return outputs

    def answer(
        self, branch: int, features: Tensor, before: StageAnswer | None
    ) -> StageAnswer:
        """Answer the samples that reach a branch, by a net in eval mode.

        Parameters
        ----------
        branch : int
            Index of the branch.
        features : Tensor of shape (n_samples, ...)
            Features of its tap, flat or not, of any device and dtype.
        before : StageAnswer or None
            What the branch before said of the same samples; None at the first.

        Returns
        -------
        said : StageAnswer
            What this branch says.

        Raises
        ------
        ValueError
            If an output is not finite.
        """
        parameter = next(self.parameters())
        tap = features.reshape(-1, *self.shapes[branch])
        with torch.inference_mode():
            outputs, memory = self.exit(
                branch,
                tap.to(parameter.device, parameter.dtype),
                None if before is None else before.memory,
            )
        check_finite(outputs, f"the outputs of branch {branch}", "Scale the features.")
        proba, gate = self.read(branch, outputs)
        return StageAnswer(proba, before, gate=gate, memory=memory)

    def macs(self) -> list[int]:
        """Count the multiply-accumulates of each branch for one sample.

        Returns
        -------
        macs : list of int
            Counted by torch, for each branch alone.
        """
        parameter = next(self.parameters())
        counts, memory = [], None
        with inference_mode_for(self):
            for k, shape in enumerate(self.shapes):
                tap = torch.zeros(1, *shape).to(parameter.device, parameter.dtype)
                counts.append(count_macs(partial(self.exit, k, memory=memory), tap))
                _, memory = self.exit(k, tap, memory)
        return counts

    def _norms(self) -> list[WeightedBatchNorm]:
        return [m for m in self.modules() if isinstance(m, WeightedBatchNorm)]


class LabelNet(ExitNet):
    """Heads of one kind on all taps, trained on the labels.

    The loss is ``sum_k v_k mean w CE(z_k, y)``.

    Parameters
    ----------
    shapes : sequence of tuple of int
        Shape of one sample's features at each tap.
    n_classes : int
        Number of classes.
    head : str
        Name of the head, of `sk_calex.branches._heads.HEADS`.
    head_params : dict or None
        Its parameters.
    generator : torch.Generator
        Source of the initial parameters.
    branch_weights : sequence of float, default=None
        Weights v of the branches' losses; None: all 1.
    """

    separable: ClassVar[bool] = True

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        n_classes: int,
        head: str,
        head_params: dict[str, Any] | None,
        generator: torch.Generator,
        branch_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(shapes, n_classes)
        weights = [1.0] * len(shapes) if branch_weights is None else branch_weights
        self.branch_weights = tuple(weights)
        params = head_params or {}
        self.heads = nn.ModuleList(
            build_head(head, shape, n_classes, generator=generator, **params)
            for shape in shapes
        )

    def loss(
        self, outputs: list[Tensor], labels: Tensor, final: Tensor, weight: Tensor
    ) -> Tensor:
        """Compute ``sum_k v_k mean w CE(z_k, y)``; see `ExitNet.loss`."""
        losses = [
            v * F.cross_entropy(z, labels, reduction="none")
            for v, z in zip(self.branch_weights, outputs, strict=False)
        ]
        return (weight * torch.stack(losses).sum(dim=0)).mean()


@dataclass(frozen=True)
class ExitRows:
    """Training rows: which of a feature matrix, labels, last stage, weights."""

    features: NDArray[Any]
    layout: TapLayout
    rows: NDArray[np.intp]
    labels: NDArray[np.intp]
    final: NDArray[np.float64]
    weight: NDArray[np.float64]

    def tensors(
        self, index: Tensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Return taps, labels, last stage and weights of some of the rows."""
        where = torch.from_numpy(self.rows)[index]
        taps = [
            gather_rows(
                self.layout.block(self.features, k), where, device, dtype
            ).reshape(-1, *shape)
            for k, shape in enumerate(self.layout.shapes)
        ]
        labels = torch.from_numpy(self.labels.astype(np.int64, copy=False))[index]
        final, weight = (torch.from_numpy(a) for a in (self.final, self.weight))
        return (
            taps,
            labels.to(device),
            final[index].to(device, dtype),
            weight[index].to(device, dtype),
        )

    def __len__(self) -> int:
        return len(self.rows)


def fit_exit_net(
    net: ExitNet,
    rows: ExitRows,
    *,
    solver: str,
    max_iter: int | None,
    batch_size: int,
    learning_rate: float | None,
    weight_decay: float,
    generator: torch.Generator,
    device: torch.device,
    verbose: bool = False,
) -> History:
    """Train a network of branches in place.

    Parameters
    ----------
    net : ExitNet
        The network; on the CPU, in float32.
    rows : ExitRows
        What trains it, weights positive.
    solver : {"auto", "adam", "adam_full_batch", "lbfgs"}
        "adam" takes mini-batches. "adam_full_batch" and "lbfgs" take all rows at once,
        in float64 and without randomness; integer weights are repetition. "auto" takes
        all rows up to 100,000 numbers in the taps, with "lbfgs" where all heads are
        linear, and mini-batches above.
    max_iter : int or None
        Epochs (adam), updates (adam_full_batch) or iterations (lbfgs). None: 12 epochs
        and at least 400 updates; 60 updates; 30 iterations.
    batch_size, learning_rate, weight_decay
        Rows of a mini-batch, and settings of AdamW under a one-cycle schedule; the
        decay is an L2 penalty with "lbfgs".
    generator : torch.Generator
        Order of the mini-batches.
    device : torch.device
        Where to train.
    verbose : bool, default=False
        Whether to show a bar over the epochs or evaluations of the loss.

    Returns
    -------
    history : History
        The course of the loss.
    """
    n = len(rows)
    width = rows.layout.columns(rows.layout.n_taps - 1).stop
    if solver == "auto":
        small = n * width <= SMALL_SIZE
        linear = all(getattr(head, "is_linear", False) for head in net.heads)
        solver = choose_full_batch(linear) if small else "adam"
    repeat = rows.weight
    rows = replace(rows, weight=repeat / repeat.mean())
    dtype = torch.float32 if solver == "adam" else torch.float64
    net.to(device, dtype)
    if solver == "lbfgs":
        with (
            current_task().part("training"),
            _full_batch(net, rows, repeat, device) as (taps, loss),
        ):
            train = partial(
                lbfgs_loop,
                max_iter=max_iter or default_max_iter(solver),
                weight_decay=weight_decay,
                verbose=verbose,
            )
            if net.separable:
                history = _train_branch_by_branch(net, taps, loss, train)
            else:
                history = train(net, lambda: loss(net(taps)))
    elif solver == "adam_full_batch":
        updates = max_iter or default_max_iter(solver)
        with (
            current_task().part("training", updates) as task,
            _full_batch(net, rows, repeat, device) as (taps, loss),
        ):
            history = full_batch_adam_loop(
                net,
                lambda: loss(net(taps)),
                max_iter=updates,
                learning_rate=learning_rate or _full_batch_rate(net),
                weight_decay=weight_decay,
                verbose=verbose,
                epoch=partial(task.part, "epoch"),
            )
    else:

        def loss_of(index: Tensor) -> Tensor:
            taps, labels, final, share = rows.tensors(index, device, dtype)
            return net.loss(net(taps), labels, final, share)

        updates = max(1, n // min(batch_size, n))
        epochs = max_iter or max(12, -(-400 // updates))
        with current_task().part("training", epochs) as task:
            history = adam_loop(
                net,
                loss_of,
                n,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate or MINI_BATCH_RATE,
                weight_decay=weight_decay,
                generator=generator,
                verbose=verbose,
                epoch=partial(task.part, "epoch"),
            )
    net.finish(rows)
    return history


def _full_batch_rate(net: ExitNet) -> float:
    """Rate of full-batch Adam that suits all heads: the least of theirs."""
    default = BranchHead.full_batch_rate
    return min(getattr(head, "full_batch_rate", default) for head in net.heads)


@contextmanager
def _full_batch(
    net: ExitNet,
    rows: ExitRows,
    repeat: NDArray[np.float64],
    device: torch.device,
) -> Iterator[tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]]:
    """Give the taps of all rows, and the loss of outputs for them, with weights set."""
    taps, labels, final, share = rows.tensors(
        torch.arange(len(rows)), device, torch.float64
    )
    repeats = torch.from_numpy(repeat).to(device)
    for norm in net._norms():
        # The running statistics become those of the last step, all rows' as given.
        norm.row_weights, norm.momentum = repeats, 1.0

    def loss(outputs: list[Tensor]) -> Tensor:
        return net.loss(outputs, labels, final, share)

    yield taps, loss
    for norm in net._norms():
        norm.row_weights = None


def _train_branch_by_branch(
    net: ExitNet,
    taps: list[Tensor],
    loss: Callable[[list[Tensor]], Tensor],
    train: Callable[[nn.Module, Callable[[], Tensor]], History],
) -> History:
    history, memory = History(), None
    before: list[Tensor] = []
    for k, tap in enumerate(taps):
        answer = partial(net.exit, k, tap, memory)
        run = train(net.heads[k], partial(_loss_so_far, loss, before, answer))
        history.loss += run.loss
        history.n_iter = max(history.n_iter, run.n_iter)
        with torch.no_grad():
            outputs, memory = answer()
        before.append(outputs)
    net.eval()
    return history


def _loss_so_far(
    loss: Callable[[list[Tensor]], Tensor],
    before: list[Tensor],
    answer: Callable[[], tuple[Tensor, Tensor | None]],
) -> Tensor:
    return loss([*before, answer()[0]])
