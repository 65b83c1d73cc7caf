"""A module cut at its taps, to stop at one and go on with fewer rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sk_calex.backbone._explicit import explicit_stages, is_explicit
from sk_calex.backbone._export import ExportedModule
from sk_calex.backbone._graph import CannotCutError, State, Step
from sk_calex.backbone._trace import TracedModule, unknown_tap
from sk_calex.backbone._whole import WholeModule, autocast_to, check_whole, close
from sk_calex.utils._flops import MacCount, checked_macs, unchecked_macs
from sk_calex.utils._modes import inference_mode_for
from sk_calex.utils._packed_conv import PackedConv2d

__all__ = ["Batch", "Stages", "State", "inference_mode_for", "take_rows"]

Batch = Tensor | Mapping[str, Tensor]
"""Prepared samples: one tensor, or several by the module's argument names."""

_CHANNELS_LAST_GRID = 16

_ADVICE = (
    " Or give its parts as explicit stages: nn.Sequential(OrderedDict(stem=..., "
    "body=..., rest=...)), with names of direct children as taps, is cut without "
    "tracing."
)


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
    way : str
        How the module was cut: "explicit", "fx", "fx, modules whole" or "export".
    called : tuple of torch.nn.Module or None
        The modules that stages call, where all are layers of torch, whose code is known
        to touch no other module; None where there may be others.

    Notes
    -----
    Stages share the module's layers, parameters and buffers; nothing is copied but the
    convolutions that `fast` changes.
    Split again after replacing any (``module.to(device)`` replaces buffers).
    A stage never writes into its inputs: where a layer works in place on a value
    that a stage has returned (a ReLU right after the tap), it gets a copy.

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

    names: tuple[str, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    macs: tuple[int, ...]
    way: str
    called: tuple[nn.Module, ...] | None

    def __init__(
        self,
        names: Sequence[str],
        keys: tuple[str, ...] | None,
        steps: Sequence[Step],
        *,
        way: str,
        formats: bool,
    ) -> None:
        self.names = tuple(names)
        self.way = way
        self._keys, self._formats = keys, formats
        self._steps = tuple(steps)
        self.called = _called_layers(steps)

    @classmethod
    def split(
        cls,
        module: nn.Module,
        taps: Sequence[str],
        example: Batch,
        *,
        output: str | int | None = None,
        amp: torch.dtype | None = None,
        fast: bool = False,
    ) -> Stages:
        """Cut ``module`` at ``taps`` and check that the stages reproduce it.

        Parameters
        ----------
        module : torch.nn.Module
            Takes one batch, returns the logits. It is cut in the first way that works:

            - a `torch.nn.Sequential` whose taps are names of its direct children
              is sliced. Nothing is traced, so the children may do anything, and may
              pass on a tuple or dict of tensors, of which the first is the tap;
            - by torch.fx, tracing into all modules but those of torch.nn;
            - by torch.fx, tracing only into modules that hold a tap;
            - by torch.export.
        taps : sequence of str
            Names of modules inside ``module`` (as in ``module.named_modules()``),
            in order of execution; the tap is what the module returns. Where torch.fx
            traces the module an operation's name works too (``"layer1.0.relu_1"``, as
            listed by
            `torchvision.models.feature_extraction.get_graph_node_names`).
        example : torch.Tensor of shape (n, ...) or dict of them, n >= 1
            A few preprocessed rows of real data on the module's device. Modules get a
            dict as keywords, an `nn.Sequential` as it is.
        output : str or int, default=None
            Which part of what the module returns are the logits: a key, an attribute
            or an index. None: it returns one tensor.
        amp : torch.dtype, default=None
            Autocast to it while the module runs, and is compared.
        fast : bool, default=False
            Fold batch normalisation into the convolution before it, pack weights and
            choose memory formats: faster, and equal up to rounding. Folded and packed
            layers are copies: later changes of the module's weights do not reach them.
            Packed layers compute in float32, or with ``amp=torch.bfloat16`` in that;
            not done with another `amp`, which they would escape.

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
        keys, batches = take_rows(example)
        x = batches[-1]
        whole = WholeModule(module, keys, output, amp)
        packed: torch.dtype | None = torch.float32 if amp is None else amp
        if not fast or packed not in (torch.float32, torch.bfloat16):
            packed = None
        refusals: list[CannotCutError] = []
        with inference_mode_for(module), autocast_to(x[0].device, amp):
            expected = check_whole(whole, batches)
            for way, cut in _ways(whole, names, batches).items():
                for fast_now in dict.fromkeys((packed, None)):
                    try:
                        steps, live = cut(fast_now)
                        formats = fast_now is not None and x[0].device.type == "cpu"
                        stages = cls(names, keys, steps, way=way, formats=formats)
                        counts = stages._check(whole, live, batches, expected)
                    except CannotCutError as error:
                        refusals.append(error)
                        break
                    except RuntimeError:
                        # What a memory format breaks, such as a view after it.
                        if fast_now is None:
                            raise
                    else:
                        stages.macs = tuple(checked_macs(counts))
                        return stages
        raise _refusal(module, names, refusals)

    def _check(
        self,
        whole: WholeModule,
        live: Sequence[Sequence[str]],
        batches: Sequence[State],
        expected: Tensor,
    ) -> list[MacCount]:
        """Measure the stages, and check that they give what the module gives."""
        steps, counts = list(self._steps), []
        state = batches[0]
        for k, step in enumerate(steps):
            steps[k] = step = _without_side_effects(step, state)
            counts.append(unchecked_macs(step, *state, weights_of=whole.module))
            output, state = step(*state)
            _check_rows(k, self.names, output, state, live[k], 1)
        self._steps = tuple(steps)
        shapes, state = [], batches[-1]
        for k in range(len(steps)):
            output, state = self.advance(k, state)
            _check_rows(k, self.names, output, state, live[k], len(batches[-1][0]))
            shapes.append(tuple(output.shape[1:]))
        self.output_shapes = tuple(shapes)
        _check_close(output, expected, whole.amp)
        # Samples that leave must not be missed: one that goes on alone.
        rows = torch.tensor([1], device=expected.device)
        output, state = self.advance(0, batches[-1])
        for k in range(1, len(steps)):
            output, state = self.advance(k, self.take(state, rows) if k == 1 else state)
        _check_close(output, expected[rows], whole.amp)
        return counts

    @property
    def n_taps(self) -> int:
        """Number of taps, K."""
        return len(self.names)

    def start(self, x: Batch) -> State:
        """Return the state before stage 0: the tensors of the preprocessed batch."""
        if self._keys is None:
            assert isinstance(x, Tensor)
            return (x,)
        assert isinstance(x, Mapping)
        return tuple(x[key] for key in self._keys)

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
        if self._formats:
            state = tuple(_in_format(value) for value in state)
        return self._steps[k](*state)

    @staticmethod
    def take(state: State, rows: Tensor) -> State:
        """Keep the samples ``rows`` (int64 indices, on the device) of a state."""
        return tuple(value.index_select(0, rows) for value in state)


def _called_layers(steps: Sequence[Step]) -> tuple[nn.Module, ...] | None:
    """Layers of torch that steps call, each once; None where other modules may run."""
    layers: dict[nn.Module, None] = {}
    for step in steps:
        graph = getattr(step, "__self__", None)
        if not isinstance(graph, fx.GraphModule):
            return None  # explicit stages
        for module in graph.modules():
            if module is graph or isinstance(module, PackedConv2d):
                continue  # generated or our own: neither reads flags nor keeps tensors
            is_torchs = type(module).__module__.startswith("torch.nn.")
            if not is_torchs or "forward" in vars(module):
                return None
            layers[module] = None
    return tuple(layers)


def take_rows(example: Batch) -> tuple[tuple[str, ...] | None, list[State]]:
    """Take 1, 2 and 3 samples of an example; its rows are repeated where it has fewer.

    Returns
    -------
    keys : tuple of str or None
        Names of the tensors, where they have some.
    batches : list of tuple of Tensor
        The tensors for 1, 2 and 3 samples.
    """
    keys = tuple(example) if isinstance(example, Mapping) else None
    x = tuple(example.values()) if isinstance(example, Mapping) else (example,)
    rows = torch.arange(3, device=x[0].device) % min(2, len(x[0]))
    return keys, [tuple(tensor[rows[:n]] for tensor in x) for n in (1, 2, 3)]


def _in_format(value: Tensor) -> Tensor:
    """Lay large maps out in channels last, small ones contiguously.

    For layers that follow the format of their input: of a ResNet18 the first stage
    takes half the time in channels last, the last one up to a quarter more. Packed
    convolutions choose their own.
    """
    if value.ndim != 4 or not value.is_floating_point():
        return value
    large = min(value.shape[2:]) >= _CHANNELS_LAST_GRID
    form = torch.channels_last if large else torch.contiguous_format
    return value.contiguous(memory_format=form)


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
    tensors = list(example.values()) if isinstance(example, Mapping) else [example]
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"example must be a torch.Tensor, or a dict of them; got "
                f"{type(tensor)}."
            )
        if tensor.ndim == 0 or len(tensor) == 0:
            raise ValueError(
                f"example has shape {tuple(tensor.shape)}: give at least one row."
            )
    return names


_Cut = Callable[[torch.dtype | None], tuple[list[Step], list[list[str]]]]


def _ways(
    whole: WholeModule, names: tuple[str, ...], batches: Sequence[State]
) -> dict[str, _Cut]:
    """List the ways to cut a module; each gives the steps and the state's names."""
    module = whole.module
    if isinstance(module, nn.Sequential) and is_explicit(module, names):
        return {"explicit": partial(_slice, whole, names, batches)}

    def traced(fast: torch.dtype | None, taps: Sequence[str] | None = None) -> Any:
        whole.check_hooks(taps)
        return _cut(TracedModule(whole, len(batches[0]), taps), names, batches, fast)

    def exported(fast: torch.dtype | None) -> Any:
        whole.check_hooks(None)
        return _cut(ExportedModule(whole, batches[-1]), names, batches, None)

    return {
        "fx": traced,
        "fx, modules whole": partial(traced, taps=names),
        "export": exported,
    }


def _cut(
    found: TracedModule | ExportedModule,
    names: tuple[str, ...],
    batches: Sequence[State],
    fast: torch.dtype | None,
) -> tuple[list[Step], list[list[str]]]:
    nodes = [found.find(name) for name in names]
    return found.graph.cut(names, nodes, batches, fast=fast)


def _slice(
    whole: WholeModule,
    names: tuple[str, ...],
    batches: Sequence[State],
    fast: torch.dtype | None,
) -> tuple[list[Step], list[list[str]]]:
    # Only hooks of the list itself are not called.
    whole.check_hooks(())
    module = cast(nn.Sequential, whole.module)
    stages = explicit_stages(module, names, whole.batch(batches[-1]))
    last = stages[-1]

    def finish(*state: Tensor) -> tuple[Any, State]:
        output, state = last(*state)
        return whole.pick(output), state

    steps: list[Step] = [*stages[:-1], finish]
    return steps, [[stage.name] * stage.n_passed for stage in stages]


def _refusal(
    module: nn.Module, names: Sequence[str], refusals: Sequence[CannotCutError]
) -> ValueError:
    """Say in one error why no way of cutting works."""
    known = [name for name, _ in module.named_modules() if name]
    error = refusals[0]
    for name in names:
        if name not in known and error.__cause__ is not None:
            # The module was not traced, so operations have no names.
            error = CannotCutError(str(unknown_tap(name, known)))
            return ValueError(str(error))
    reasons = list(dict.fromkeys(str(refusal) for refusal in refusals))
    traced = not is_explicit(module, names)
    refusal = ValueError(" ".join(reasons) + _ADVICE * traced)
    refusal.__cause__ = error.__cause__
    return refusal


def _check_rows(
    k: int,
    names: tuple[str, ...],
    output: Any,
    state: tuple[Any, ...],
    live: Sequence[str],
    n_rows: int,
) -> None:
    """Check that what a stage returns has one row per sample."""
    if not _has_rows(output, n_rows):
        what = f"tap {names[k]!r}" if k < len(names) else "the module's output"
        raise CannotCutError(
            f"{what} is {_describe(output)} for a batch of {n_rows}; it must be one "
            "tensor whose first dimension is the batch. Tap another module."
        )
    if k < len(names) and (output.is_quantized or not output.is_floating_point()):
        raise CannotCutError(
            f"tap {names[k]!r} is of dtype {output.dtype}; branches need real floating "
            "point features. Tap a module before or after it."
        )
    for name, value in zip(live, state, strict=True):
        if not _has_rows(value, n_rows):
            raise CannotCutError(
                f"the module cannot be cut at tap {names[k]!r}: {name!r}, which is "
                f"needed after it, is {_describe(value)} for a batch of {n_rows}, not "
                "one row per sample, so samples could not leave there. Move the tap."
            )


def _has_rows(value: object, n_rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n_rows


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{value!r}" if isinstance(value, int) else f"a {type(value).__name__}"


def _check_close(staged: Tensor, expected: Tensor, amp: torch.dtype | None) -> None:
    if not close(staged, expected, amp):
        raise CannotCutError(
            "the stages do not reproduce the module (largest difference "
            f"{(staged - expected).abs().max():.3g}). Its forward does something that "
            "tracing does not see."
        )


# Stages must not write into the tensors that they are given.


def _without_side_effects(step: Step, state: State) -> Step:
    """Return ``step``, or if it writes into its inputs, ``step`` on copies of those.

    In-place layers are harmless inside a module. At a cut they are not: a ReLU
    right after a tap would change the tap's output after it was returned.

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
