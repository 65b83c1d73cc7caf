"""Keep a stage from writing into the tensors that it is given."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sk_calex.backbone._trace import State, Step

__all__ = ["without_side_effects"]


def without_side_effects(step: Step, state: State) -> Step:
    """Return ``step``, or if it writes into its inputs, ``step`` on copies of those.

    In-place layers are harmless inside a module. At a cut they are not: a ReLU
    right after a tap would change the tap's output after it was handed out.

    Parameters
    ----------
    step : callable
        A stage. It is run once, on copies, to see which operators write where;
        this shows in the operators, whatever the values are.
    state : tuple of torch.Tensor
        Its inputs.
    """
    copies = tuple(value.clone() for value in state)
    watch = _WriteWatch(copies)
    with watch:
        step(*copies)
    written = watch.written
    if not written:
        return step
    return lambda *inputs: step(
        *(t.clone() if i in written else t for i, t in enumerate(inputs))
    )


class _WriteWatch(TorchDispatchMode):
    """Notes which of some tensors are written to, be it through a view."""

    def __init__(self, watched: State) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: set[int] = set()
        self._index = {_storage(tensor): i for i, tensor in enumerate(watched)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                # One tensor, or a list for the operators on several at once.
                for tensor in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(tensor, Tensor) and _storage(tensor) in self._index:
                        self.written.add(self._index[_storage(tensor)])
        return func(*args, **kwargs)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
