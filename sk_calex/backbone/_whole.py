"""A module as a function of tensors that returns logits, and what it must be like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from sk_calex.backbone._graph import CannotCutError, State
from sk_calex.backbone._prepare import scrambled

__all__ = [
    "WholeModule",
    "amp_dtype",
    "autocast_to",
    "check_module",
    "check_whole",
    "close",
]


class WholeModule(nn.Module):
    """A module with the tensors of a batch as arguments and one tensor as its value.

    Parameters
    ----------
    module : torch.nn.Module
        The module.
    keys : tuple of str or None
        Its argument names, one per tensor; None: it takes one tensor.
    output : str, int or None
        Which part of what it returns are the logits.
    amp : torch.dtype or None
        To which autocast lowers the precision while it runs.
    """

    def __init__(
        self,
        module: nn.Module,
        keys: tuple[str, ...] | None = None,
        output: str | int | None = None,
        amp: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.amp = amp
        self._keys, self._output = keys, output

    def forward(self, *tensors: Tensor) -> Any:
        """Call the module for its logits."""
        return self.pick(self.call(*tensors))

    def call(self, *tensors: Tensor) -> Any:
        """Call the module, and return all that it returns."""
        batch = self.batch(tensors)
        if self._keys is None or isinstance(self.module, nn.Sequential):
            return self.module(batch)
        return self.module(**batch)

    def batch(self, tensors: State) -> Any:
        """Return the batch as the module knows it: a tensor, or tensors by name."""
        if self._keys is None:
            return tensors[0]
        return dict(zip(self._keys, tensors, strict=True))

    def pick(self, result: Any) -> Any:
        """Take the logits out of what the module returns."""
        if self._output is None:
            if isinstance(result, Mapping):
                raise ValueError(
                    f"module returns a {type(result).__name__} with the keys "
                    f"{list(result)}; say which are the logits, such as "
                    "output='logits'."
                )
            if isinstance(result, tuple | list):
                raise ValueError(
                    f"module returns a {type(result).__name__} of {len(result)}: it "
                    "must return one tensor, the logits. Say which part they are, such "
                    "as output=0."
                )
            return result
        try:
            if isinstance(self._output, str) and not isinstance(result, Mapping):
                return getattr(result, self._output)
            return result[self._output]
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            found = f" with the keys {list(result)}" if isinstance(result, dict) else ""
            raise ValueError(
                f"output={self._output!r} is no part of what the module returns, a "
                f"{type(result).__name__}{found}."
            ) from error

    def check_hooks(self, taps: Sequence[str] | None) -> None:
        """Refuse hooks on modules that are taken apart: they would not be called.

        Parameters
        ----------
        taps : sequence of str or None
            Where given, only modules around them are taken apart, else all but leaves.
        """
        for name, part in self.module.named_modules():
            if not (part._forward_hooks or part._forward_pre_hooks):
                continue
            if taps is None:
                apart = next(part.children(), None) is not None
            else:
                apart = not name or any(tap.startswith(f"{name}.") for tap in taps)
            if apart:
                raise CannotCutError(
                    f"module {name!r}, of class {type(part).__name__}, has forward "
                    "hooks, which are not called where it is cut into stages. Remove "
                    "them with handle.remove()."
                )


def check_whole(whole: WholeModule, batches: Sequence[State]) -> Tensor:
    """Run a module on 3 samples and on one; refuse what no cut could put right.

    Returns
    -------
    expected : Tensor
        Outputs for the 3 samples.
    """
    watch = _AutocastWatch(batches[0][0].device.type)
    with watch:
        expected = _run(whole, batches[-1])
    if watch.seen:
        raise ValueError(
            f"{type(whole.module).__name__} uses torch.autocast in its forward, which "
            "stages cannot reproduce. Take it out of forward and set amp='bfloat16' or "
            "amp='float16'."
        )
    alone = _run(whole, batches[0])
    for output, n_rows in ((alone, 1), (expected, len(batches[-1][0]))):
        if not isinstance(output, Tensor) or output.shape[:1] != (n_rows,):
            what = f"a {type(output).__name__}"
            if isinstance(output, Tensor):
                what = f"a tensor of shape {tuple(output.shape)}"
            raise ValueError(
                f"the module's output is {what} for a batch of {n_rows}; it must be "
                "one tensor whose first dimension is the batch."
            )
    if not expected.is_floating_point() or not bool(expected.isfinite().all()):
        raise ValueError(
            "module must return finite floating-point logits; for the example it "
            f"returns {expected.dtype} with minimum {expected.min()} and maximum "
            f"{expected.max()}. Check its weights and the preprocessing."
        )
    if not close(_run(whole, batches[-1]), expected, whole.amp):
        raise ValueError(
            "module gives different outputs for the same input in eval mode: a "
            "module that depends on chance or on earlier calls cannot be cut."
        )
    # Beside a random sample too: the given ones may be equal.
    beside = tuple(torch.cat([t[:1], scrambled(t[:1])]) for t in batches[0])
    among = [expected[:1], _run(whole, beside)[:1]]
    if not all(close(alone, row, whole.amp) for row in among):
        raise ValueError(
            "the module's output for a sample depends on the other samples of its "
            "batch (or on the batch size), so samples cannot leave early."
        )
    return expected


def _run(whole: WholeModule, batch: State) -> Any:
    # Copies: what the module does to its input in place is its own business.
    return whole(*(tensor.clone() for tensor in batch))


def close(a: Tensor, b: Tensor, amp: torch.dtype | None = None) -> bool:
    """Tell whether outputs are equal to half of their digits, on their scale."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # GPUs may multiply float32 in TF32.
    eps = max(torch.finfo(b.dtype).eps, 2.0**-10 if b.is_cuda else 0.0)
    if amp is not None:
        eps = max(eps, torch.finfo(amp).eps)
    return torch.allclose(a, b, rtol=0.0, atol=eps**0.5 * float(b.abs().max()))


def amp_dtype(name: str | None) -> torch.dtype | None:
    """Return the dtype that the parameter `amp` names."""
    return None if name is None else getattr(torch, name)


@contextmanager
def autocast_to(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Run with autocast to a dtype; None: as it is."""
    if dtype is None:
        yield
        return
    # Lowered copies of weights are not kept: those made in inference mode must not
    # be used afterwards.
    with torch.autocast(device.type, dtype=dtype, cache_enabled=False):
        yield


class _AutocastWatch(TorchFunctionMode):
    """Notes whether autocast is switched on while it is active."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        self._before = torch.is_autocast_enabled(kind)
        self.seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.seen |= torch.is_autocast_enabled(self._kind) and not self._before
        return func(*args, **(kwargs or {}))


def check_module(module: Any) -> None:
    """Refuse wrappers of torch and modules without weights, before anything runs.

    Parameters
    ----------
    module : object
        What was given as the module.

    Raises
    ------
    TypeError
        If it is a wrapper; the message says which, and what to give.
    ValueError
        If it has parameters that are not there yet.
    """
    kind = type(module).__name__
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    advice = None
    if isinstance(module, parallel):
        advice = "Give the module inside it: module.module."
    elif hasattr(module, "_orig_mod"):
        kind = "module compiled by torch.compile"
        advice = "Give the module that was compiled: module._orig_mod."
    elif isinstance(module, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        advice = (
            "Give the nn.Module that it was made from; or let it be one of the stages "
            "of an nn.Sequential."
        )
    elif isinstance(module, torch.export.ExportedProgram) or _is_exported(module):
        kind = "exported program"
        advice = "Give the nn.Module that was exported."
    if advice is not None:
        raise TypeError(
            f"module is a {kind}, which cannot be cut into stages. {advice}"
        )
    if not isinstance(module, nn.Module):
        return  # the check of parameters says what is accepted
    for name, part in module.named_modules():
        if part._compiled_call_impl is not None:
            where = f"its part {name!r}" if name else "it"
            raise TypeError(
                f"module was compiled in place: {where} has had compile() called. Give "
                "the module as it was before."
            )
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in tensors:
        if is_lazy(tensor):
            raise ValueError(
                f"module has a lazy layer whose {name!r} is not initialised. Run the "
                "module once on a batch, and train it, before it is given."
            )
        if tensor.is_meta:
            raise ValueError(
                f"module has {name!r} on the meta device, without values. Load its "
                "weights before it is given."
            )


def _is_exported(module: Any) -> bool:
    if not isinstance(module, fx.GraphModule):
        return False
    return any(isinstance(n.target, torch._ops.OpOverload) for n in module.graph.nodes)
