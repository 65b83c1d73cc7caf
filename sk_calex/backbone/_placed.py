"""Where a frozen module runs, and whether stages cut from it are still those of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sk_calex.backbone._stages import Stages
from sk_calex.utils._validation import resolve_device

__all__ = ["CutModule", "Placed", "state_of"]


@dataclass(frozen=True, eq=False)
class Placed:
    """Where a module runs: itself or a copy, and all modules inside it."""

    module: nn.Module
    parts: tuple[nn.Module, ...]
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, module: nn.Module, device: str | torch.device) -> Placed:
        """Find the device, and the module there; the user's module stays where it is.

        Parameters
        ----------
        module : torch.nn.Module
            The user's module.
        device : str or torch.device
            As the parameter of `FrozenBackbone`.

        Returns
        -------
        placed : Placed
            The module itself where all of it is on the device, else a copy.
        """
        there = resolve_device(device)
        places = {t.device for t in [*module.parameters(), *module.buffers()]}
        if len(places) == 1:
            (place,) = places
            if place.type == there.type and there.index in (None, place.index):
                there = place
        placed = module if places <= {there} else copy.deepcopy(module).to(there)
        floating = (p.dtype for p in module.parameters() if p.is_floating_point())
        dtype = next(floating, torch.float32)
        return cls(placed, tuple(placed.modules()), there, dtype)


@dataclass(frozen=True, eq=False)
class CutModule:
    """The stages of a placed module, and from which tensors they were made."""

    placed: Placed
    stages: Stages
    made_from: list[tuple[int, int, int]]
    fingerprint: str | None

    def is_current(self) -> bool:
        """Tell whether no weight was written to since, as far as torch counts it."""
        return self.made_from == state_of(self.placed.parts)

    def modules_in_use(self) -> Sequence[nn.Module]:
        """Return the modules that may read a flag or keep a tensor while stages run."""
        called = self.stages.called
        if called is None or any(
            m._forward_hooks or m._forward_pre_hooks for m in called
        ):
            return self.placed.parts  # code of the user, which may do anything
        return called


def state_of(modules: Sequence[nn.Module]) -> list[tuple[int, int, int]]:
    """Identify the tensors of modules: which, where, and how often each was written to.

    Cheap, but blind to writes through ``.data``, which torch does not count.
    """
    # Inference tensors cannot be written to outside of inference mode: no version.
    return [
        (id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    ]
