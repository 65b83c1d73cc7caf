"""Run a module as it is: eval mode, no gradients, nothing left changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["frozen"]


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
    method, not once per batch. Flags belong to the module, so two threads that
    freeze the same module *in training mode* disturb each other; a module that
    is already in eval mode may be shared.

    Examples
    --------
    >>> from torch import nn
    >>> from sk_calex._frozen import frozen
    >>> module = nn.Dropout()
    >>> with frozen(module):
    ...     module.training
    False
    >>> module.training
    True
    """
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for m in training:
            m.training = True
