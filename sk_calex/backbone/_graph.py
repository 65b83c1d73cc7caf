"""Cut the graph of a module into steps, however the graph was found."""

from __future__ import annotations

import copy
import operator
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sk_calex.utils._packed_conv import pack

__all__ = ["CannotCutError", "ModuleGraph", "State", "Step", "check_order"]

State = tuple[Tensor, ...]
"""The values that cross a cut: tensors with one row per sample."""

Step = Callable[..., tuple[Any, State]]
"""One stage: the state's tensors in, ``(output, next state)`` out."""

_COMPUTED = ("call_module", "call_function", "call_method")

# What reads a tensor's shape, type or device, and none of its values.
_METADATA_NAMES = frozenset({"shape", "dtype", "device", "ndim", "is_cuda", "itemsize"})
_METADATA_METHODS = frozenset({"size", "dim", "ndimension", "numel", "nelement"})
_METADATA_FUNCTIONS = frozenset(
    {torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default, torch.numel}
)
_WRITING_FUNCTIONS = frozenset(
    {
        *(operator.setitem, operator.iadd, operator.isub, operator.imul),
        *(operator.itruediv, operator.iand, operator.ior),
    }
)


class CannotCutError(ValueError):
    """Raised where one way of cutting a module does not work but another may."""


@dataclass(frozen=True, eq=False)
class ModuleGraph:
    """The operations of one pass through a module, in order of execution.

    Parameters
    ----------
    nodes : sequence of torch.fx.Node
        All nodes between the inputs and the output.
    inputs : sequence of torch.fx.Node
        The tensors of the batch.
    result : torch.fx.Node
        The module's output.
    values : mapping of torch.fx.Node to object
        Parameters, buffers and layers that nodes stand for: the module's own.
    names : mapping of torch.fx.Node to str
        How nodes are called in messages.
    """

    nodes: Sequence[fx.Node]
    inputs: Sequence[fx.Node]
    result: fx.Node
    values: Mapping[fx.Node, Any]
    names: Mapping[fx.Node, str]

    def cut(
        self,
        taps: Sequence[str],
        tap_nodes: Sequence[fx.Node],
        batches: Sequence[State],
        *,
        fast: torch.dtype | None = None,
    ) -> tuple[list[Step], list[list[str]]]:
        """Cut into ``len(taps) + 1`` steps that share the module's own tensors.

        Parameters
        ----------
        taps : sequence of str
            Names of the taps, for messages.
        tap_nodes : sequence of torch.fx.Node
            Their values.
        batches : sequence of tuple of Tensor
            The inputs for 1, 2 and 3 samples.
        fast : torch.dtype, default=None
            Fold batch normalisation into the convolution before it, and pack weights in
            this dtype; those layers are copies then, and equal to the module's up to
            rounding. None: neither.

        Returns
        -------
        steps : list of callable
            One per stage.
        live : list of list of str
            Names of the values that each step passes on.

        Raises
        ------
        ValueError
            If the taps are not in order of execution.
        CannotCutError
            If a shape does not grow with the number of samples.
        """
        order = {node: i for i, node in enumerate([*self.inputs, *self.nodes])}
        positions = [order[node] for node in tap_nodes]
        check_order(taps, positions, order[self.result])
        varying, shapes = self._classify()
        stage = {node: bisect_left(positions, i) for node, i in order.items()}
        last_use = {
            node: max(
                (stage[user] for user in node.users if user in varying), default=0
            )
            for node in order
        }
        computed = [node for node in self.nodes if node in varying]
        templates = self._learn_shapes(shapes, varying, batches)
        builder = _StepBuilder(self, templates, fast)
        inputs = list(self.inputs)
        steps, live = [], []
        for k, end in enumerate([*tap_nodes, self.result]):
            inside = [node for node in computed if stage[node] == k]
            outputs = [
                n for n in [*self.inputs, *computed] if stage[n] <= k < last_use[n]
            ]
            steps.append(builder.build(k, inputs, inside, end, outputs))
            live.append([self.names.get(node, node.name) for node in outputs])
            inputs = outputs
        return steps, live

    def varying(self) -> set[fx.Node]:
        """Find nodes whose values depend on more of the samples than their shapes."""
        return self._classify()[0]

    def count_crossing(self) -> dict[fx.Node, int]:
        """Count the values that later nodes need from a cut after each node."""
        varying, _ = self._classify()
        nodes = [*self.inputs, *self.nodes]
        order = {node: i for i, node in enumerate(nodes)}
        ends = [0] * (len(nodes) + 1)
        n_alive, counts = 0, {}
        for i, node in enumerate(nodes):
            n_alive -= ends[i]
            if node in varying:
                last = max((order[u] for u in node.users if u in varying), default=i)
                if node is self.result:
                    last = len(nodes)
                n_alive += last > i
                ends[last] += last > i
            counts[node] = n_alive
        return counts

    def _classify(self) -> tuple[set[fx.Node], list[fx.Node]]:
        """Find nodes that depend on the samples, and those that read their shapes.

        All others depend on parameters, constants and shapes alone. They have no place
        in the state: the stages that use them compute them anew.
        """
        varying, shapes = self._follow(set())
        written = self._find_written(varying)
        return self._follow(written) if written else (varying, shapes)

    def _follow(self, seeds: set[fx.Node]) -> tuple[set[fx.Node], list[fx.Node]]:
        varying, shapes = {*self.inputs, *seeds}, []
        for node in self.nodes:
            if varying.intersection(node.all_input_nodes):
                if _reads_shape(node):
                    shapes.append(node)
                else:
                    varying.add(node)
        return varying, shapes

    def _find_written(self, varying: set[fx.Node]) -> set[fx.Node]:
        """Find nodes made from constants that are written into, with what they view."""
        written: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if node in written and node not in varying:
                written.update(node.all_input_nodes)
            for target in _written_by(node):
                if target not in varying and (node in varying or len(target.users) > 1):
                    written.update((target, *target.all_input_nodes))
        return {node for node in written if node not in self.values}

    def _learn_shapes(
        self,
        shapes: Sequence[fx.Node],
        varying: set[fx.Node],
        batches: Sequence[State],
    ) -> dict[fx.Node, Any]:
        """Learn how the values of shape nodes follow from the number of samples."""
        if not shapes:
            return {}
        inside = [node for node in self.nodes if node in varying]
        run = _StepBuilder(self, {}, None).build(
            0, self.inputs, [*inside, *shapes], self.result, shapes, self.nodes
        )
        found = [run(*batch)[1] for batch in batches]
        templates: dict[fx.Node, Any] = {}
        for node, *values in zip(shapes, *found, strict=True):
            try:
                templates[node] = _template(self.names.get(node, node.name), *values)
            except CannotCutError as error:  # no matter unless a later stage needs it
                templates[node] = error
        return templates


class _StepBuilder:
    """Compiles nodes of a graph to functions."""

    def __init__(
        self,
        graph: ModuleGraph,
        templates: Mapping[fx.Node, Any],
        fast: torch.dtype | None,
    ) -> None:
        self._graph, self._templates, self._fast = graph, templates, fast

    def build(
        self,
        stage: int,
        inputs: Sequence[fx.Node],
        inside: Iterable[fx.Node],
        end: fx.Node,
        outputs: Sequence[fx.Node],
        order: Sequence[fx.Node] | None = None,
    ) -> Step:
        """Compile the nodes ``inside`` to ``(*inputs) -> (end, outputs)``."""
        inside = list(inside)
        if order is not None:
            wanted = set(inside)
            inside = [node for node in order if node in wanted]
        graph, values = fx.Graph(), self._graph.values
        copies = {node: graph.placeholder(node.name) for node in inputs}
        reference = next(iter(copies.values()), None)
        attributes: dict[str, Any] = {}
        folded = (
            _foldable(inside, {end, *outputs}, values) if self._fast is not None else {}
        )
        absorbed = set(folded.values())

        def attach(node: fx.Node, value: Any) -> str:
            # Flat names: one attribute access a call, not one a level.
            name = node.name if node.op == "placeholder" else str(node.target)
            name = name.replace(".", "_")
            while attributes.setdefault(name, value) is not value:
                name += "_"
            return name

        def add(node: fx.Node) -> None:
            if stage > 0 and node in self._templates:
                template = self._templates[node]
                if isinstance(template, CannotCutError):
                    raise template
                copies[node] = graph.call_function(size_for, (reference, template))
                return
            if node in values and node.op != "call_module":
                copies[node] = graph.get_attr(attach(node, values[node]))
                return
            for needed in node.all_input_nodes:
                if needed not in copies:
                    add(needed)  # made from constants and shapes
            new = copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op == "call_module":
                new.target = attach(node, self._layer(node, folded))
            elif self._fast is not None and _is_view(node):
                # Of maps in channels last, which packed layers give, no view may exist.
                new.target = "reshape" if node.op == "call_method" else torch.reshape

        for node in inside:
            if node in absorbed:
                # Its normalisation, next in line, does its work on its input.
                copies[node] = copies[node.all_input_nodes[0]]
            elif node not in copies:
                add(node)
        for node in (end, *outputs):
            if node not in copies:
                add(node)
        graph.output((copies[end], tuple(copies[node] for node in outputs)))
        # Its bound forward: nothing of nn.Module.__call__ is needed here.
        return fx.GraphModule(attributes, graph).forward

    def _layer(self, node: fx.Node, folded: Mapping[fx.Node, fx.Node]) -> Any:
        layer = self._graph.values[node]
        if node in folded:
            layer = _fold(self._graph.values[folded[node]], layer)
        if self._fast is None or _hooked(layer):
            return layer
        return pack(layer, self._fast)


def size_for(x: Any, template: Any) -> Any:
    """Compute the value of a shape node for as many samples as ``x`` has rows.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Any value with one row per sample.
    template : tuple
        From `_template`.
    """
    return _fill(x.shape[0], template)  # of torch.export, too, where it is open


def _fill(n_rows: int, template: Any) -> Any:
    kind, content = template
    if kind == "number":
        return content[0] * n_rows + content[1]
    if kind == "same":
        return content
    filled = [_fill(n_rows, item) for item in content]
    return torch.Size(filled) if kind == "size" else tuple(filled)


def _template(name: str, *values: Any) -> tuple[str, Any]:
    """Describe a value at 1, 2 and 3 samples as a function of their number."""
    one, two, three = values
    if isinstance(one, tuple | list) and len(one) == len(two) == len(three):
        items = tuple(_template(name, *item) for item in zip(*values, strict=True))
        return ("size" if isinstance(one, torch.Size) else "items"), items
    if type(one) is int and three - two == two - one:
        return "number", (two - one, 2 * one - two)
    if one == two == three:
        return "same", one
    raise CannotCutError(
        f"{name!r} is {one}, {two} and {three} for 1, 2 and 3 samples, which is not "
        "proportional to their number."
    )


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METADATA_METHODS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _METADATA_NAMES
    return node.target in _METADATA_FUNCTIONS


def _written_by(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose values a node writes into."""
    targets: list[Any] = []
    if node.op == "call_method" and str(node.target).endswith("_"):
        if not str(node.target).endswith("__"):
            targets = [node.args[0]]
    elif isinstance(node.target, torch._ops.OpOverload):
        arguments = node.target._schema.arguments
        targets = [
            value
            for argument, value in zip(arguments, node.args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
    elif node.target in _WRITING_FUNCTIONS:
        targets = [node.args[0]]
    if isinstance(node.kwargs.get("out"), fx.Node):
        targets.append(node.kwargs["out"])
    return [target for target in targets if isinstance(target, fx.Node)]


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_method":
        is_dtype = any(isinstance(argument, torch.dtype) for argument in node.args)
        return node.target == "view" and not is_dtype
    return node.target is torch.ops.aten.view.default


# Batch normalisation folded into the convolution before it: one kernel less.

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _foldable(
    nodes: Sequence[fx.Node], kept: set[fx.Node], values: Mapping[fx.Node, Any]
) -> dict[fx.Node, fx.Node]:
    """Find normalisations that the convolution before them can take over.

    From each to its convolution, in the same stage, whose output nothing else uses.
    """
    inside, pairs = set(nodes), {}
    for node in nodes:
        if node.op != "call_module" or type(values[node]) not in _NORMS:
            continue
        (layer,) = node.all_input_nodes
        if (
            layer in inside
            and layer not in kept
            and layer.op == "call_module"
            and len(layer.users) == 1
            and _fits(values[layer], values[node])
        ):
            pairs[node] = layer
    return pairs


def _fits(layer: Any, norm: Any) -> bool:
    pair = (type(layer), type(norm))
    if pair not in zip(_CONVOLUTIONS, _NORMS, strict=True):
        return False
    return norm.running_mean is not None and not (_hooked(layer) or _hooked(norm))


def _hooked(module: nn.Module) -> bool:
    """Tell whether a hook watches a module's values."""
    # It would see the folded value, or none at all.
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold(layer: Any, norm: Any) -> nn.Module:
    """Copy ``layer`` so that it does the work of ``norm``, in eval mode, too."""
    layer, norm = copy.deepcopy(layer).eval(), copy.deepcopy(norm).eval()
    return fuse_conv_bn_eval(layer, norm).requires_grad_(False)


def check_order(taps: Sequence[str], positions: Sequence[int], end: int) -> None:
    """Check that taps are distinct values, in order of execution, before the output."""
    ordered = sorted(zip(positions, taps, strict=True))
    for (position, tap), (following, other) in pairwise(ordered):
        if position == following:
            raise ValueError(
                f"taps {tap!r} and {other!r} are the same value: keep one of them."
            )
    if list(positions) != sorted(positions):
        raise ValueError(
            f"taps={list(taps)} are not in order of execution; give "
            f"taps={[tap for _, tap in ordered]}."
        )
    if ordered[-1][0] >= end:
        raise ValueError(
            f"tap {ordered[-1][1]!r} is the module's output: nothing would be left to "
            "save after it. Leave it out; the last exit is always the module itself."
        )
