"""Run a module as it is: eval mode, no gradients, nothing left changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sk_calex.utils._fork import fork_safe_lock

__all__ = ["BOOKKEEPING", "frozen", "trainable"]

BOOKKEEPING = frozenset(vars(nn.Module()))
"""Attributes that torch gives every module: flags, hooks, parameters, children."""

# How many blocks hold a module, by id, of those that were in training mode. They are
# referred to by the blocks, so that no id is another module's meanwhile.
_holders: dict[int, int] = {}
_lock = fork_safe_lock()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Put ``module`` in eval mode and torch in inference mode, for a ``with`` block.

    Every submodule gets its own training flag back when the block ends, also by
    an exception: a module with some parts in training mode and some not leaves
    as it came. Only flags are touched; ``train()`` and ``eval()``, which modules
    may override, are not called.

    Parameters
    ----------
    module : torch.nn.Module
        The module to run inside the block.

    Notes
    -----
    The cost is one walk over the submodules: enter it once per call of a public
    method, not once per batch. Threads may freeze the same module, or parts of it,
    at a time: a flag comes back when the last of them is done.

    Examples
    --------
    >>> from torch import nn
    >>> from sk_calex.utils._modes import frozen
    >>> module = nn.Dropout()
    >>> with frozen(module):
    ...     module.training
    False
    >>> module.training
    True
    """
    ours: list[nn.Module] = []
    try:
        with _lock:
            for m in module.modules():
                n_holders = _holders.get(id(m), 0)
                if n_holders or m.training:
                    ours.append(m)
                    _holders[id(m)] = n_holders + 1
                    m.training = False
        with torch.inference_mode():
            yield
    finally:
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

    What is to be trained must also be made inside of it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield
