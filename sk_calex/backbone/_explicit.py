"""Cut an explicit list of stages: an nn.Sequential whose children are tapped."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from sk_calex.backbone._graph import CannotCutError, State, check_order

__all__ = ["ExplicitStage", "explicit_stages", "is_explicit"]


def is_explicit(module: nn.Module, taps: Sequence[str]) -> bool:
    """Tell whether a module is an nn.Sequential with all taps as direct children."""
    plain = type(module).forward is nn.Sequential.forward
    return plain and module._modules.keys() >= set(taps)


class ExplicitStage:
    """Some children of an nn.Sequential, run one after the other.

    Parameters
    ----------
    name : str
        Name of the last of them, for messages.
    layers : sequence of torch.nn.Module
        The children.
    spec : TreeSpec
        How the first one wants the tensors of the state: alone, in a tuple, in a dict.
    is_last : bool
        Whether the output is the module's.
    """

    def __init__(
        self, name: str, layers: Sequence[nn.Module], spec: TreeSpec, is_last: bool
    ) -> None:
        self.name, self._layers, self._spec = name, layers, spec
        self._is_last = is_last
        self.next_spec: TreeSpec | None = None
        self.n_passed = 0  # tensors that it passes on

    def __call__(self, *state: Tensor) -> tuple[Any, State]:
        """Run the children on a state; the first tensor that they give is the tap."""
        value: Any = tree_unflatten(list(state), self._spec)
        for layer in self._layers:
            value = layer(value)
        if self._is_last:
            return value, ()
        tensors, self.next_spec = tree_flatten(value)
        if not tensors or not all(isinstance(item, Tensor) for item in tensors):
            kinds = [type(item).__name__ for item in tensors]
            raise CannotCutError(
                f"stage {self.name!r} gives {type(value).__name__} with {kinds}. A "
                "stage passes on a tensor, or a tuple or dict of tensors, each with "
                "one row per sample; the first one is the tap."
            )
        self.n_passed = len(tensors)
        return tensors[0], tuple(tensors)


def explicit_stages(
    module: nn.Sequential, taps: Sequence[str], batch: Any
) -> list[ExplicitStage]:
    """Slice an nn.Sequential after its tapped children. Nothing is traced.

    Parameters
    ----------
    module : torch.nn.Sequential
        The stages.
    taps : sequence of str
        Names of direct children.
    batch : Tensor or dict of Tensor
        Prepared samples, to learn what stages pass on.
    """
    # Not named_children(): that leaves out the second of two uses of a layer.
    children = list(module._modules.items())
    position = {name: i for i, (name, _) in enumerate(children)}
    ends = [position[name] for name in taps]
    check_order(taps, ends, len(children) - 1)
    state, spec = tree_flatten(batch)
    stages = []
    bounds = [0, *(end + 1 for end in ends), len(children)]
    for start, stop in pairwise(bounds):
        layers = [layer for _, layer in children[start:stop]]
        last = stop == len(children)
        stage = ExplicitStage(children[stop - 1][0], layers, spec, last)
        if not last:
            # Copies: a later stage may write into what it is given.
            _, passed = stage(*(tensor.clone() for tensor in state))
            state = list(passed)
            assert stage.next_spec is not None
            spec = stage.next_spec
        stages.append(stage)
    return stages
