"""Trace a module with torch.fx, find taps in its graph, cut the graph at them."""

from __future__ import annotations

import copy
import re
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, pairwise
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sk_calex.utils._modes import BOOKKEEPING
from sk_calex.utils._packed_conv import PackedConv2d, pack
from sk_calex.utils._validation import near_names

__all__ = ["State", "Step", "TracedModule", "check_order", "unknown_tap"]

State = tuple[Tensor, ...]
"""The values that cross a cut: tensors with one row per sample."""

Step = Callable[..., tuple[Any, State]]
"""One stage: the state's tensors in, ``(output, next state)`` out."""

# While fx traces it patches `torch.nn.Module` for the whole process: one at a time.
_TRACING = threading.Lock()

_COMPUTED = ("call_module", "call_function", "call_method", "get_attr")


class TracedModule:
    """The graph of ``module(x)``, with names for what is in it.

    Trace in eval mode: functional dropout and the like record the training flag
    that they see. Layers of torch.nn stay whole, as always in torch.fx.

    Parameters
    ----------
    module : torch.nn.Module
        A module that torch.fx can follow; what fx raises for another passes
        through.
    fold_norms : bool, default=False
        Whether the cut stages fold batch normalisation into convolutions; those are
        copies then, and only equal to the module's up to rounding.
    """

    def __init__(self, module: nn.Module, fold_norms: bool = False) -> None:
        self._fold_norms = fold_norms
        self.packed = False  # whether a step that was cut has packed convolutions
        self._tracer = _Tracer(module)
        # Traced from one level above, the module's optional arguments take their
        # defaults, its hooks run, and constants that fx stores stay off it.
        self._root = _Root(module)
        with _TRACING, _attributes_kept(module):
            self._nodes = list(self._tracer.trace(self._root).nodes)
        self._order = {node: i for i, node in enumerate(self._nodes)}
        # What does not depend on the input needs no place in the state: the
        # stages that use it compute it from the module's parameters.
        self._constant: set[fx.Node] = set()
        for node in self._nodes:
            used = node.all_input_nodes
            if node.op in _COMPUTED and self._constant.issuperset(used):
                self._constant.add(node)

    def cut(self, taps: Sequence[str]) -> tuple[list[Step], list[list[str]]]:
        """Cut into ``len(taps) + 1`` steps that share the module's own tensors.

        Returns
        -------
        steps : list of callables
            Step ``k`` ends with tap ``k``, the last one with the module's output.
        live : list of list of str
            Names of the values in the state that each step leaves.
        """
        tap_nodes = [self._find(tap) for tap in taps]
        result = self._nodes[-1].args[0]
        if not isinstance(result, fx.Node):
            raise ValueError(
                f"module returns {result!r}: it must return one tensor, the logits. "
                "Wrap it in a module that returns the logits alone."
            )
        positions = [self._order[node] for node in tap_nodes]
        check_order(taps, positions, self._order[result])

        stage = {node: bisect_left(positions, i) for node, i in self._order.items()}
        last_use = {n: max((stage[u] for u in n.users), default=0) for n in stage}
        varying = [n for n in self._nodes if n not in self._constant]

        inputs = [n for n in self._nodes if n.op == "placeholder"]
        steps, live = [], []
        for k, end in enumerate([*tap_nodes, result]):
            inside = [n for n in varying if stage[n] == k and n.op in _COMPUTED]
            outputs = [n for n in varying if stage[n] <= k < last_use[n]]
            steps.append(self._build(inputs, inside, end, outputs))
            live.append([self._name(node) for node in outputs])
            inputs = outputs
        return steps, live

    def _find(self, tap: str) -> fx.Node:
        """Return the node whose value is the tap."""
        modules, nodes = self._tracer.modules, self._tracer.node_of
        if tap in nodes and tap not in modules:
            return nodes[tap]
        if tap not in modules:
            operations = (name for name in nodes if not name.endswith("_0"))
            raise unknown_tap(tap, [*modules, *operations])
        outputs = self._tracer.outputs[modules[tap]]
        if not outputs:
            raise ValueError(
                f"tap {tap!r} has no output of its own in the traced module: it is a "
                "container, unused, or inside a torch.nn layer, which is not traced "
                "into. Tap the module around it or one next to it."
            )
        if len(outputs) > 1:
            proxies = [output for output in outputs if isinstance(output, fx.Proxy)]
            calls = [self._name(proxy.node) for proxy in proxies]
            raise ValueError(
                f"tap {tap!r} is called {len(outputs)} times in one pass. Say which "
                f"call is meant by the name of its last operation: {calls}."
            )
        if not isinstance(outputs[0], fx.Proxy):
            raise ValueError(
                f"tap {tap!r} returns a {type(outputs[0]).__name__}; a tap returns one "
                "tensor, made from the input. Tap a module inside it or after it."
            )
        return outputs[0].node

    def _module(self, node: fx.Node) -> Any:
        return _get_attribute(self._root, str(node.target))

    def _name(self, node: fx.Node) -> str:
        return self._tracer.name_of.get(node, node.name)

    def _build(
        self,
        inputs: Sequence[fx.Node],
        inside: Sequence[fx.Node],
        end: fx.Node,
        outputs: Sequence[fx.Node],
    ) -> Step:
        """Compile the nodes ``inside`` to ``(*inputs) -> (end, outputs)``."""
        graph = fx.Graph()
        copies = {node: graph.placeholder(node.name) for node in inputs}
        attributes: dict[str, Any] = {}
        folded = (
            _foldable(inside, {end, *outputs}, self._module) if self._fold_norms else {}
        )
        absorbed = set(folded.values())

        def add(node: fx.Node) -> None:
            for needed in node.all_input_nodes:
                if needed not in copies:
                    add(needed)  # a constant
            new = copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op in ("call_module", "get_attr"):
                # Flat names: one attribute access a call, not one a level.
                value = _get_attribute(self._root, str(node.target))
                if node in folded:
                    value = _fold(self._module(folded[node]), value)
                if self._fold_norms and node.op == "call_module" and not _hooked(value):
                    value = pack(value)
                    self.packed |= isinstance(value, PackedConv2d)
                new.target = str(node.target).replace(".", "_")
                while attributes.setdefault(new.target, value) is not value:
                    new.target += "_"

        for node in inside:
            if node in absorbed:
                # Its normalisation, next in line, does its work on its input.
                copies[node] = copies[node.all_input_nodes[0]]
            else:
                add(node)
        if end not in copies:
            add(end)
        graph.output((copies[end], tuple(copies[node] for node in outputs)))
        # Its bound forward: nothing of nn.Module.__call__ is needed here.
        return fx.GraphModule(attributes, graph).forward


@contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Give a module back the attributes that it had.

    A forward that keeps what it has computed keeps fx's proxies while it is traced.
    """
    parts = list(module.modules())
    before = [_attributes(part) for part in parts]
    lists = [v for own in before for v in own.values() if type(v) is list]
    contents = [list(values) for values in lists]
    try:
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            now = _attributes(part)
            for name in now.keys() - own.keys():
                del vars(part)[name]
            for name, value in own.items():
                if now.get(name) is not value:
                    vars(part)[name] = value
        for values, content in zip(lists, contents, strict=True):
            values[:] = content


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Those that are the module's own; flags, hooks and the like are torch's."""
    return {k: v for k, v in vars(module).items() if k not in BOOKKEEPING}


class _Root(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


class _Tracer(fx.Tracer):
    """Remembers what each module returned and gives operations a lasting name.

    Names follow torchvision's feature extraction: the path of the module, the
    operation and, from the second of its kind on, a number: ``layer1.0.add``,
    ``layer1.0.relu_1``. A layer's calls are numbered from 0, so that the first of
    several can be named too.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        named = module.named_modules(remove_duplicate=False)
        self.modules = {name: m for name, m in named if name}
        self.outputs: dict[nn.Module, list[object]] = defaultdict(list)
        self.node_of: dict[str, fx.Node] = {}
        self.name_of: dict[fx.Node, str] = {}
        self._thread = threading.get_ident()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)  # another thread's module, run for real
        output = super().call_module(m, forward, args, kwargs)
        self.outputs[m].append(output)
        return output

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any
    ) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if kind.startswith("call_"):
            name = self._new_name(kind, proxy.node)
            self.node_of[name] = proxy.node
            self.name_of[proxy.node] = name
        return proxy

    def _new_name(self, kind: str, node: fx.Node) -> str:
        path = self.scope.module_path.split(".")[1:]  # without the root's "module"
        endings: Iterable[str] = (f"_{i}" for i in count())
        if kind != "call_module":
            # fx numbers an operation over the whole graph: count per module anew.
            path.append(re.sub(r"_\d+$", "", node.name))
            endings = chain([""], (f"_{i}" for i in count(1)))
        names = (".".join(path) + ending for ending in endings)
        return next(n for n in names if n not in self.node_of and n not in self.modules)


def _get_attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value


def check_order(taps: Sequence[str], positions: Sequence[int], end: int) -> None:
    """Taps must be distinct values, in order of execution, before the output."""
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


def unknown_tap(tap: str, known: Sequence[str]) -> ValueError:
    """The error for a tap that names nothing."""
    return ValueError(
        f"tap {tap!r} is not in the module. Near names: {near_names(tap, known)}. "
        "All names: [name for name, _ in module.named_modules()]; operations inside a "
        "module: torchvision.models.feature_extraction.get_graph_node_names(module)[1]."
    )


# Batch normalisation folded into the convolution before it: one kernel less.

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _foldable(
    nodes: Sequence[fx.Node],
    kept: Collection[fx.Node],
    module_of: Callable[[fx.Node], Any],
) -> dict[fx.Node, fx.Node]:
    """Normalisations among ``nodes`` that the convolution before them can take over.

    Parameters
    ----------
    nodes : sequence of torch.fx.Node
        Nodes of one stage.
    kept : collection of torch.fx.Node
        Nodes whose own values leave the stage and must stay as they are.
    module_of : callable
        From a ``call_module`` node to its module.

    Returns
    -------
    pairs : dict
        From each normalisation to its convolution, in the same stage, whose output
        nothing else uses.
    """
    inside, pairs = set(nodes), {}
    for node in nodes:
        if node.op != "call_module" or type(module_of(node)) not in _NORMS:
            continue
        (layer,) = node.all_input_nodes
        if (
            layer in inside
            and layer not in kept
            and layer.op == "call_module"
            and len(layer.users) == 1
            and _fits(module_of(layer), module_of(node))
        ):
            pairs[node] = layer
    return pairs


def _fits(layer: Any, norm: Any) -> bool:
    pair = (type(layer), type(norm))
    if pair not in zip(_CONVOLUTIONS, _NORMS, strict=True):
        return False
    return norm.running_mean is not None and not (_hooked(layer) or _hooked(norm))


def _hooked(module: nn.Module) -> bool:
    """Whether somebody watches a module's values."""
    # A hook would see the folded value, or none at all.
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold(layer: Any, norm: Any) -> nn.Module:
    """A copy of ``layer`` that does the work of ``norm``, in eval mode, too."""
    layer, norm = copy.deepcopy(layer).eval(), copy.deepcopy(norm).eval()
    return fuse_conv_bn_eval(layer, norm).requires_grad_(False)
