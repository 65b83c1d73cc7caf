"""Make logits of what a module gives: one number, probabilities, or logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sk_calex.utils._codec import savable
from sk_calex.utils._warn import warn_caller

__all__ = ["OUTPUTS", "OutputForm", "SigmoidWatch", "find_form"]

OUTPUTS = ("logits", "probabilities")

_TOLERANCE = 1e-3


@savable
class OutputForm:
    """How outputs become logits, one column per class, in float32.

    Parameters
    ----------
    probabilities : bool
        Whether outputs are probabilities, whose logarithms are logits.
    single : bool
        Whether there is one number per sample, of the second of two classes.
    """

    def __init__(self, probabilities: bool, single: bool) -> None:
        self.probabilities, self.single = probabilities, single

    def __call__(self, outputs: Tensor) -> Tensor:
        """Apply it to outputs of shape (n, C), or (n,) or (n, 1) for one number.

        Softmax of the result gives the module's probabilities: a logit z becomes
        [0, z], since sigmoid(z) is the second entry of softmax([0, z]).
        """
        if not (self.single or self.probabilities):
            return outputs
        outputs = outputs.float()
        if self.single:
            z = outputs.reshape(-1, 1)
            if self.probabilities:
                z = torch.logit(z, eps=torch.finfo(z.dtype).eps)
            return torch.cat([torch.zeros_like(z), z], 1)
        return outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log()

    def key(self) -> tuple[bool, bool]:
        """Return what counts in the fingerprint of features."""
        return self.probabilities, self.single


def find_form(outputs: Tensor, given: str | None, ends_in_sigmoid: bool) -> OutputForm:
    """Decide what the outputs of a module are.

    Parameters
    ----------
    outputs : Tensor of shape (n, ...)
        Outputs for a few samples.
    given : {"logits", "probabilities"} or None
        What the user says.
    ends_in_sigmoid : bool
        Whether the last operation was a sigmoid.

    Raises
    ------
    ValueError
        If outputs are not one vector per sample, or no probabilities though the user
        says so.

    Warns
    -----
    UserWarning
        If outputs look like probabilities and the user does not say what they are.
    """
    shape = tuple(outputs.shape[1:])
    if len(shape) > 1:
        raise ValueError(
            f"module gives outputs of shape {shape} for one sample; a backbone "
            "must give one vector (logits or features). Flatten its output."
        )
    single = shape in ((), (1,))
    in_range = bool(((outputs >= 0) & (outputs <= 1)).all())
    if single:
        looks = in_range and ends_in_sigmoid
    else:
        sums = outputs.float().sum(1)
        looks = in_range and bool(((sums - 1).abs() < _TOLERANCE).all())
    if given == "probabilities" and not (in_range if single else looks):
        raise ValueError(
            "outputs='probabilities', but the module gives numbers that are not from 0 "
            "to 1 with a sum of 1 per sample, such as "
            f"{outputs[0].flatten()[:5].tolist()}. Set outputs='logits'; a module of "
            "several independent labels is no classifier of one."
        )
    if given is None and looks:
        warn_caller(
            "module gives probabilities, as it ends in a softmax or sigmoid, but they "
            "are taken as logits, and softmax is applied to them again. Set "
            "outputs='probabilities'; or outputs='logits' if that is what they are.",
            UserWarning,
        )
    return OutputForm(given == "probabilities", single)


class SigmoidWatch(TorchDispatchMode):
    """Notes which tensors a sigmoid has made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not getattr(func, "is_view", False):
            place = result.untyped_storage().data_ptr()
            if func.overloadpacket in (torch.ops.aten.sigmoid, torch.ops.aten.sigmoid_):
                self._made.add(place)
            else:
                self._made.discard(place)
        return result

    def has_made(self, tensor: Tensor) -> bool:
        """Tell whether a tensor, or what it is a view of, comes from a sigmoid."""
        return tensor.untyped_storage().data_ptr() in self._made
