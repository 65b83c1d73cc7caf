"""A frozen module cut at its taps, to stop at one and go on with fewer rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sk_calex.backbone._trace import State, Step, TracedModule, check_order, unknown_tap
from sk_calex.utils._flops import checked_macs, unchecked_macs
from sk_calex.utils._modes import inference_mode_for

__all__ = ["Stages", "State", "inference_mode_for"]


class Stages:
    """A module as K + 1 stages: up to the first tap, between taps, to the output.

    Build one with `Stages.split`, run it inside ``with inference_mode_for(module)``.

    Attributes
    ----------
    names : tuple of str, length K
        The taps, in order of execution.
    output_shapes : tuple of tuple of int, length K + 1
        Shape per sample of each tap and, last, of the module's output.
    macs : tuple of int, length K + 1
        Multiply-accumulates of each stage for a batch of one row, counted by
        torch (see `sk_calex.utils._flops`).
    packed : bool
        Whether convolutions have packed weights, and so work on channels-last maps.

    Notes
    -----
    Stages share the module's layers, parameters and buffers; nothing is copied but the
    convolutions that `fold_norms` changes.
    Split again after replacing any (``module.to(device)`` replaces buffers).
    A stage never writes into its inputs: where a layer works in place on a value
    that was handed out at a cut (a ReLU right after the tap), it gets a copy.

    Stages hold compiled functions and are not meant to be pickled: keep the
    module and the taps, and split again.

    Examples
    --------
    Run the first stage, keep rows 1 and 2, and finish with those:

    >>> from collections import OrderedDict
    >>> import torch
    >>> from torch import nn
    >>> from sk_calex.backbone._stages import Stages, inference_mode_for
    >>> module = nn.Sequential(OrderedDict(
    ...     stem=nn.Sequential(nn.Linear(4, 8), nn.ReLU()), rest=nn.Linear(8, 3)))
    >>> X = torch.randn(5, 4)
    >>> stages = Stages.split(module, ["stem"], X)
    >>> stages.output_shapes, stages.macs
    (((8,), (3,)), (32, 24))
    >>> with inference_mode_for(module):
    ...     tap, state = stages.advance(0, stages.start(X))
    ...     state = stages.take(state, torch.tensor([1, 2]))
    ...     logits, _ = stages.advance(1, state)
    ...     torch.allclose(logits, module(X)[[1, 2]])
    True
    """

    def __init__(
        self,
        names: Sequence[str],
        steps: Sequence[Step],
        output_shapes: Sequence[tuple[int, ...]],
        macs: Sequence[int],
        *,
        packed: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.output_shapes = tuple(output_shapes)
        self.macs = tuple(macs)
        self.packed = packed
        self._steps = tuple(steps)

    @classmethod
    def split(
        cls,
        module: nn.Module,
        taps: Sequence[str],
        example: Tensor,
        *,
        fold_norms: bool = False,
    ) -> Stages:
        """Cut ``module`` at ``taps`` and check that the stages reproduce it.

        Parameters
        ----------
        module : torch.nn.Module
            Takes one batch, returns one tensor of logits. Two kinds are cut:

            - a `torch.nn.Sequential` whose taps are names of its direct children
              is sliced. Nothing is traced, so the children may do anything. This
              is the way for modules that torch.fx cannot trace: wrap the parts in
              ``nn.Sequential(OrderedDict(stem=..., body=..., rest=...))``;
            - any other module is traced with torch.fx in eval mode.
        taps : sequence of str
            Names of modules inside ``module`` (as in ``module.named_modules()``),
            in order of execution; the tap is what the module returns. A traced
            operation's name works too (``"layer1.0.relu_1"``, as listed by
            `torchvision.models.feature_extraction.get_graph_node_names`).
        example : torch.Tensor of shape (n, ...), n >= 1
            A few preprocessed rows of real data on the module's device. One row
            is used twice: two batch sizes are needed to see what is per sample.
        fold_norms : bool, default=False
            Fold batch normalisation into the convolution before it, where the module
            is traced: faster, and equal up to rounding. The folded convolutions are
            copies: later changes of the module's weights do not reach them.

        Returns
        -------
        Stages

        Raises
        ------
        TypeError
            If ``taps`` is a single string or holds other things than strings, or
            ``module`` or ``example`` is of another type.
        ValueError
            If ``taps`` is empty, repeated, unknown, ambiguous, out of order, or
            includes the module's own output; if a tap or a value that is needed
            after it does not have one row per sample; if the module cannot be
            traced, depends on chance or mixes samples.
        """
        names = _check_arguments(module, taps, example)
        x = example if len(example) > 1 else torch.cat([example, example])
        with inference_mode_for(module):
            expected = module(x.clone())
            steps, live, packed = _cut(module, names, fold_norms)
            state: State = (x[:1],)
            counts = []
            for k, step in enumerate(steps):
                steps[k] = step = _without_side_effects(step, state)
                counts.append(unchecked_macs(step, *state, weights_of=module))
                single, state = step(*state)
                _check_rows(k, names, single, state, live[k], 1)
            state, shapes = (x,), []
            for k, step in enumerate(steps):
                output, state = step(*state)
                _check_rows(k, names, output, state, live[k], len(x))
                shapes.append(tuple(output.shape[1:]))
            _check_same(module, x, expected, output, single)
        macs = checked_macs(counts)
        return cls(names, steps, shapes, macs, packed=packed)

    @property
    def n_taps(self) -> int:
        """Number of taps, K."""
        return len(self.names)

    @staticmethod
    def start(x: Tensor) -> State:
        """Return the state before stage 0: the preprocessed batch itself."""
        return (x,)

    def advance(self, k: int, state: State) -> tuple[Tensor, State]:
        """Run stage ``k``; call it inside ``with inference_mode_for(module)``.

        Parameters
        ----------
        k : int
            Stage, from 0 to K.
        state : tuple of torch.Tensor
            From `start` for stage 0, else from ``advance(k - 1, ...)``, with rows
            taken or not. Not checked: this is the inner loop.

        Returns
        -------
        output : torch.Tensor
            Tap ``k`` or, for ``k == K``, what the module returns.
        state : tuple of torch.Tensor
            What the stages after this one need; ``()`` after the last.
        """
        return self._steps[k](*state)

    @staticmethod
    def take(state: State, rows: Tensor) -> State:
        """Keep the samples ``rows`` (int64 indices, on the device) of a state."""
        return tuple(value.index_select(0, rows) for value in state)


def _check_arguments(module: Any, taps: Any, example: Any) -> tuple[str, ...]:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module; got {type(module)}.")
    if isinstance(taps, str) or not isinstance(taps, Iterable):
        raise TypeError(
            f"taps must be a sequence of names of modules; got {taps!r}. "
            "Give a list, also for a single tap."
        )
    names = tuple(taps)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"taps must be names (str) of modules; got {name!r}.")
        if names.count(name) > 1:
            raise ValueError(f"tap {name!r} is repeated: give each tap once.")
    if not names:
        raise ValueError(
            "taps is empty: name at least one module to exit after, from "
            "[name for name, _ in module.named_modules()]."
        )
    if not isinstance(example, Tensor):
        raise TypeError(f"example must be a torch.Tensor; got {type(example)}.")
    if example.ndim == 0 or len(example) == 0:
        raise ValueError(
            f"example has shape {tuple(example.shape)}: give at least one row."
        )
    return names


def _cut(
    module: nn.Module, names: tuple[str, ...], fold_norms: bool
) -> tuple[list[Step], list[list[str]], bool]:
    """Return the steps, the names of the values in the state after each, if packed."""
    if isinstance(module, nn.Sequential):
        plain = type(module).forward is nn.Sequential.forward
        if plain and module._modules.keys() >= set(names):
            return *_slice(module, names), False
    try:
        traced = TracedModule(module, fold_norms)
    except Exception as error:
        modules = [name for name, _ in module.named_modules() if name]
        for name in names:
            if name not in modules:
                raise unknown_tap(name, modules) from error
        raise ValueError(
            f"torch.fx cannot trace {type(module).__name__} ({type(error).__name__}: "
            f"{error}). Give its parts as explicit stages: nn.Sequential(OrderedDict("
            "stem=..., body=..., rest=...)) with names of direct children as taps is "
            "cut without tracing."
        ) from error
    return *traced.cut(names), traced.packed


def _slice(
    module: nn.Sequential, names: tuple[str, ...]
) -> tuple[list[Step], list[list[str]]]:
    # Not named_children(): that leaves out the second of two uses of a layer.
    children = list(module._modules.items())
    position = {name: i for i, (name, _) in enumerate(children)}
    ends = [position[name] for name in names]
    check_order(names, ends, len(children) - 1)

    def step(start: int, stop: int) -> Step:
        layers = [layer for _, layer in children[start:stop]]
        run = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
        if stop == len(children):
            return lambda x: (run(x), ())

        def to_tap(x: Tensor) -> tuple[Tensor, State]:
            output = run(x)
            return output, (output,)

        return to_tap

    bounds = [0, *(end + 1 for end in ends), len(children)]
    steps = [step(start, stop) for start, stop in pairwise(bounds)]
    return steps, [*([name] for name in names), []]


def _check_rows(
    k: int,
    names: tuple[str, ...],
    output: Any,
    state: tuple[Any, ...],
    live: list[str],
    n_rows: int,
) -> None:
    """What is handed out at a cut must have one row per sample."""
    if not _has_rows(output, n_rows):
        what = f"tap {names[k]!r}" if k < len(names) else "the module's output"
        raise ValueError(
            f"{what} is {_describe(output)} for a batch of {n_rows}; it must be one "
            "tensor whose first dimension is the batch. Tap another module, or wrap "
            "the parts in an nn.Sequential whose children return such tensors."
        )
    for name, value in zip(live, state, strict=True):
        if not _has_rows(value, n_rows):
            raise ValueError(
                f"the module cannot be cut at tap {names[k]!r}: {name!r}, which is "
                f"needed after it, is {_describe(value)} for a batch of {n_rows}, not "
                "one row per sample, so samples could not leave there. Move the tap, "
                "or give explicit stages in an nn.Sequential."
            )


def _has_rows(value: object, n_rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n_rows


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{value!r}" if isinstance(value, int) else f"a {type(value).__name__}"


def _check_same(
    module: nn.Module, x: Tensor, expected: Tensor, staged: Tensor, single: Tensor
) -> None:
    """Stages must give what the module gives, alone or in a batch."""
    if not expected.is_floating_point() or not bool(expected.isfinite().all()):
        raise ValueError(
            "module must return finite floating-point logits; for the example it "
            f"returns {expected.dtype} with minimum {expected.min()} and maximum "
            f"{expected.max()}. Check its weights and the preprocessing."
        )
    if not _close(staged, expected):
        if not _close(module(x.clone()), expected):
            raise ValueError(
                "module gives different outputs for the same input in eval mode: a "
                "module that depends on chance or on earlier calls cannot be cut."
            )
        raise ValueError(
            "the stages do not reproduce the module (largest difference "
            f"{(staged - expected).abs().max():.3g}). Its forward does something that "
            "torch.fx does not see; give explicit stages in an nn.Sequential."
        )
    if not _close(single, expected[:1]):
        raise ValueError(
            "the module's output for a sample depends on the other samples of its "
            "batch (or on the batch size), so samples cannot leave early."
        )


def _close(a: Tensor, b: Tensor) -> bool:
    # Half the digits, on the scale of the output. GPUs may multiply float32 in TF32.
    eps = max(torch.finfo(b.dtype).eps, 2.0**-10 if b.is_cuda else 0.0)
    return torch.allclose(a, b, rtol=0.0, atol=eps**0.5 * float(b.abs().max()))


# Stages must not write into the tensors that they are given.


def _without_side_effects(step: Step, state: State) -> Step:
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
