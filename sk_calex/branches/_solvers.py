"""The training loops of all heads: Adam in mini-batches or full, full-batch L-BFGS."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sk_calex.branches._layers import smooth_gradients
from sk_calex.utils._callbacks import Task
from sk_calex.utils._progress import bar

__all__ = [
    "MINI_BATCH_RATE",
    "SMALL_SIZE",
    "History",
    "adam_loop",
    "choose_full_batch",
    "default_max_iter",
    "full_batch_adam_loop",
    "lbfgs_loop",
]

#: Up to this many numbers in the features, training on all rows at once is quick.
SMALL_SIZE = 100_000
#: Highest rate of mini-batch Adam where `learning_rate` is None.
MINI_BATCH_RATE = 3e-3
# Enough for a linear head to settle; on others, L-BFGS amplifies rounding.
_LBFGS_ITERATIONS = 30
# As quick as those iterations with their line searches, and no less accurate.
_FULL_BATCH_UPDATES = 60


@dataclass
class History:
    """Record the mean loss of each epoch (Adam) or evaluation (L-BFGS)."""

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    n_iter: int = 0


def choose_full_batch(all_linear: bool) -> str:
    """Name the full-batch solver whose result does not hang on the last bits.

    L-BFGS reaches the minimum of a linear head. With layers before it the loss is not
    convex: a line search that ends elsewhere by rounding leads to another minimum, so
    those heads take a fixed number of Adam's steps.
    """
    return "lbfgs" if all_linear else "adam_full_batch"


def default_max_iter(solver: str) -> int:
    """Return the iterations of a full-batch solver where `max_iter` is None."""
    return _LBFGS_ITERATIONS if solver == "lbfgs" else _FULL_BATCH_UPDATES


def adam_loop(
    module: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    n_rows: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    generator: torch.Generator,
    evaluate: Callable[[], float] | None = None,
    patience: int = 5,
    tol: float = 1e-4,
    verbose: bool = False,
    epoch: Callable[[], Task] = Task,
    algorithm: type[torch.optim.Adam] = torch.optim.AdamW,
) -> History:
    """Train `module` in place with AdamW under a one-cycle schedule.

    `loss_of` gives the mean loss of some of the rows ``0 .. n_rows - 1``. The last,
    smaller batch of an epoch is left out (another one each epoch), except where there
    is only one. With `evaluate`, a validation loss, the weights of the best epoch are
    kept, and training ends after `patience` epochs without a gain of `tol`. `epoch`
    gives the step that an epoch is to callbacks, which may end the training, too.
    """
    size = min(batch_size, n_rows)
    per_epoch = n_rows // size
    optimizer = algorithm(
        module.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=max(2, epochs * per_epoch)
    )
    history, best, best_state, waited = History(), math.inf, None, 0
    with bar(unit="epoch", total=epochs, verbose=verbose) as shown:
        for _ in range(epochs):
            with epoch() as step:
                module.train()
                order = torch.randperm(n_rows, generator=generator)
                total = torch.zeros(())
                for start in range(0, per_epoch * size, size):
                    optimizer.zero_grad(set_to_none=True)
                    loss = loss_of(order[start : start + size])
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    total = total.to(loss.device) + loss.detach()
                history.loss.append(float(total) / per_epoch)
                history.n_iter += 1
                if not math.isfinite(history.loss[-1]):
                    raise ValueError(
                        f"the training loss became {history.loss[-1]} in epoch "
                        f"{history.n_iter}. Lower learning_rate (now {learning_rate}) "
                        "or scale the features."
                    )
                if evaluate is not None:
                    module.eval()
                    history.validation_loss.append(evaluate())
                    if history.validation_loss[-1] < best - tol:
                        best, waited = history.validation_loss[-1], 0
                        best_state = copy.deepcopy(module.state_dict())
                    else:
                        waited += 1
            shown.set_postfix(loss=history.loss[-1], refresh=False)
            shown.update()
            if step.stop or waited >= patience:
                break
    if best_state is not None:
        module.load_state_dict(best_state)
    module.eval()
    return history


def full_batch_adam_loop(
    module: nn.Module,
    loss_of: Callable[[], Tensor],
    *,
    max_iter: int,
    learning_rate: float,
    weight_decay: float,
    verbose: bool = False,
    epoch: Callable[[], Task] = Task,
) -> History:
    """Train `module` in place with Adam on all rows at once: no randomness.

    The schedule is that of `adam_loop` with one update in each epoch, the penalty that
    of `lbfgs_loop`. Gradients are smoothed where a rectifier or a maximum has a kink,
    so that rounding in the features stays rounding in the result.
    """
    with smooth_gradients():
        history = adam_loop(
            module,
            lambda _: loss_of(),
            1,
            epochs=max_iter,
            batch_size=1,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            generator=torch.Generator(),
            verbose=verbose,
            epoch=epoch,
            algorithm=torch.optim.Adam,  # decays by the gradient of an L2 penalty
        )
    _update_statistics(module, loss_of)
    return history


def _update_statistics(module: nn.Module, loss_of: Callable[[], Tensor]) -> None:
    """Give running statistics a pass at the final parameters; end in eval mode."""
    module.train()
    with torch.no_grad():
        loss_of()
    module.eval()


def lbfgs_loop(
    module: nn.Module,
    loss_of: Callable[[], Tensor],
    *,
    max_iter: int,
    weight_decay: float,
    tol: float = 1e-9,
    verbose: bool = False,
) -> History:
    """Train `module` in place with full-batch L-BFGS: no randomness.

    The penalty is ``weight_decay / 2 * ||parameters||^2`` on the mean loss.
    """
    module.train()
    parameters = list(module.parameters())
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
        loss = loss_of()
        penalty = sum((p.square().sum() for p in parameters), start=loss.new_zeros(()))
        objective = loss + weight_decay / 2 * penalty
        objective.backward()
        history.loss.append(float(loss.detach()))
        shown.set_postfix(loss=history.loss[-1], refresh=False)
        shown.update()
        return objective

    with bar(unit="evaluation", total=None, verbose=verbose) as shown:
        optimizer.step(closure)
    history.n_iter = int(optimizer.state[parameters[0]]["n_iter"])
    _update_statistics(module, loss_of)  # the last trial step left its own
    return history
