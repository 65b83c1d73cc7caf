"""Run a module in eval mode without gradients, and restore its flags afterwards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sk_calex.utils._fork import fork_safe_lock

__all__ = ["BOOKKEEPING", "inference_mode_for", "trainable", "without_autocast"]

BOOKKEEPING = frozenset(vars(nn.Module()))
"""Attributes that torch gives every module: flags, hooks, parameters, children."""

# How many blocks hold a module, by id, of those that were in training mode. They are
# referred to by the blocks, so that no id is another module's meanwhile.
_holders: dict[int, int] = {}
_lock = fork_safe_lock()


# Types of attributes that are no tensors: most modules have no others.
_PLAIN_TYPES = frozenset(
    {bool, dict, float, int, list, OrderedDict, set, str, tuple, type(None)}
)


@contextmanager
def inference_mode_for(
    module: nn.Module, parts: Sequence[nn.Module] | None = None
) -> Iterator[None]:
    """Run ``module`` in eval and inference mode, without autocast, in a ``with`` block.

    Every submodule gets its own training flag back when the block ends, also by
    an exception: a module with some parts in training mode and some not leaves
    as it came. Only flags are touched; ``train()`` and ``eval()``, which modules
    may override, are not called. Tensors that the module keeps as attributes while it
    runs are replaced by normal ones, so that it can be trained afterwards.

    Parameters
    ----------
    module : torch.nn.Module
        The module to run inside the block.
    parts : sequence of torch.nn.Module, default=None
        The module and all modules inside it, where the caller has listed them before;
        None: they are listed here.

    Notes
    -----
    The cost is three walks over the submodules: enter it once per call of a public
    method, not once per batch. Several threads may run the same module, or parts of
    it: a flag comes back when the last of them is done.

    Examples
    --------
    >>> from torch import nn
    >>> from sk_calex.utils._modes import inference_mode_for
    >>> module = nn.Dropout()
    >>> with inference_mode_for(module):
    ...     module.training
    False
    >>> module.training
    True
    """
    ours: list[nn.Module] = []
    parts = list(module.modules()) if parts is None else parts
    made_before = {id(tensor) for _, _, tensor in _inference_tensors(parts)}
    try:
        with _lock:
            for m in parts:
                n_holders = _holders.get(id(m), 0)
                if n_holders or m.training:
                    ours.append(m)
                    _holders[id(m)] = n_holders + 1
                    m.training = False
        with torch.inference_mode(), without_autocast():
            yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for place, name, tensor in list(_inference_tensors(parts)):
                if id(tensor) not in made_before:
                    place[name] = tensor.clone()
        with _lock:
            for m in ours:
                n_holders = _holders.pop(id(m), 1) - 1
                if n_holders:
                    _holders[id(m)] = n_holders
                else:
                    m.training = True


@contextmanager
def trainable() -> Iterator[None]:
    """Let torch record gradients in a ``with`` block, whatever mode the caller is in.

    What is to be trained must also be made inside of it. Autocast is off: whether the
    caller uses it must not decide what is learned.
    """
    with torch.inference_mode(False), torch.enable_grad(), without_autocast():
        yield


@contextmanager
def without_autocast() -> Iterator[None]:
    """Switch autocast off on every kind of device for which it is on."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if _autocast_is_on(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _autocast_is_on(kind: str) -> bool:
    try:
        return torch.is_autocast_enabled(kind)
    except RuntimeError:  # a device that this build of torch does not know
        return False


def _inference_tensors(
    parts: Iterable[nn.Module],
) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Find inference tensors that are attributes of modules: where, name, tensor."""
    for part in parts:
        for place in (vars(part), part._buffers):
            if _PLAIN_TYPES.issuperset(map(type, list(place.values()))):
                continue
            for name, value in list(place.items()):
                if isinstance(value, Tensor) and value.is_inference():
                    yield place, name, value
