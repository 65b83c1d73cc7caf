"""Trace a module with torch.fx and find taps in its graph."""

from __future__ import annotations

import operator
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

from torch import fx, nn

from sk_calex.backbone._graph import CannotCutError, ModuleGraph
from sk_calex.utils._modes import BOOKKEEPING
from sk_calex.utils._validation import near_names

__all__ = ["TRACING", "TracedModule", "attributes_kept", "unknown_tap"]

# While fx traces it patches `torch.nn.Module` for the whole process: one at a time.
TRACING = threading.Lock()


class TracedModule:
    """The graph of a module by torch.fx, with names for what is in it.

    Trace in eval mode: functional dropout and the like record the training flag
    that they see. Layers of torch.nn stay whole, as always in torch.fx.

    Parameters
    ----------
    root : torch.nn.Module
        Takes the tensors of a batch and calls its only child, ``module``, with them.
        Traced from one level above, the module's optional arguments take their
        defaults, its hooks run, and constants that fx stores stay off it.
    n_inputs : int
        Number of tensors in a batch.
    taps : sequence of str, default=None
        Where given, modules that hold none of them stay whole, so what they do need
        not be traceable.
    """

    def __init__(
        self, root: nn.Module, n_inputs: int, taps: Sequence[str] | None = None
    ) -> None:
        module: Any = root.module
        self._tracer = tracer = _Tracer(module, n_inputs, taps)
        try:
            with TRACING, attributes_kept(module):
                traced = list(tracer.trace(root).nodes)
        except Exception as error:
            raise CannotCutError(
                f"torch.fx cannot trace {type(module).__name__} "
                f"({type(error).__name__}: {error})."
            ) from error
        result = traced[-1].args[0]
        if not isinstance(result, fx.Node):
            raise CannotCutError(
                f"module returns {result!r}: it must return one tensor, the logits, "
                "made from the input."
            )
        self.graph = ModuleGraph(
            _parts_first([n for n in traced[:-1] if n.op != "placeholder"]),
            [node for node in traced if node.op == "placeholder"],
            result,
            {
                node: _get_attribute(root, str(node.target))
                for node in traced
                if node.op in ("call_module", "get_attr")
            },
            tracer.name_of,
        )

    def find(self, tap: str) -> fx.Node:
        """Find the node whose value is the tap.

        Raises
        ------
        ValueError
            If there is none of that name, or several.
        CannotCutError
            If it is no tensor of its own in this trace.
        """
        modules, nodes = self._tracer.modules, self._tracer.node_of
        if tap in nodes and tap not in modules:
            return nodes[tap]
        if tap not in modules:
            operations = (name for name in nodes if not name.endswith("_0"))
            raise unknown_tap(tap, [*modules, *operations])
        outputs = self._tracer.outputs[modules[tap]]
        if not outputs:
            raise CannotCutError(
                f"tap {tap!r} has no output of its own in the traced module: it is a "
                "container, unused, or inside a torch.nn layer, which is not traced "
                "into. Tap the module around it or one next to it."
            )
        if len(outputs) > 1:
            proxies = [output for output in outputs if isinstance(output, fx.Proxy)]
            calls = [self.graph.names[proxy.node] for proxy in proxies]
            raise ValueError(
                f"tap {tap!r} is called {len(outputs)} times in one pass. Say which "
                f"call is meant by the name of its last operation: {calls}."
            )
        if not isinstance(outputs[0], fx.Proxy):
            raise CannotCutError(
                f"tap {tap!r} returns a {type(outputs[0]).__name__}; a tap returns one "
                "tensor, made from the input. Tap a module inside it or after it."
            )
        return _first_part(outputs[0].node)

    def outputs(self) -> dict[str, fx.Node]:
        """Find the nodes of modules that were called once and gave one traced value."""
        return {
            name: _first_part(self._tracer.outputs[module][0].node)
            for name, module in self._tracer.modules.items()
            if len(self._tracer.outputs[module]) == 1
            and isinstance(self._tracer.outputs[module][0], fx.Proxy)
        }


def _part(node: fx.Node) -> bool:
    """Tell whether a node takes one part of a tuple, by its number."""
    return node.target is operator.getitem and isinstance(node.args[1], int)


def _parts_first(nodes: list[fx.Node]) -> list[fx.Node]:
    """Order nodes so that the parts of a tuple follow it, the first one last.

    Cut at its first part, what crosses then are parts, not the tuple.
    """
    ordered = []
    for node in nodes:
        if not _part(node):
            ordered.append(node)
            pending = [node]
            while pending:
                parts = [user for user in pending.pop().users if _part(user)]
                parts.sort(key=lambda part: bool(part.args[1] == 0))
                ordered += parts
                pending += parts
    return ordered


def _first_part(node: fx.Node) -> fx.Node:
    """Return the first part of a tuple that is only taken apart, else the node."""
    if node.users and all(_part(user) for user in node.users):
        return next((user for user in node.users if user.args[1] == 0), node)
    return node


@contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
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
    """Return attributes that are the module's own: no flags, hooks and the like."""
    return {k: v for k, v in vars(module).items() if k not in BOOKKEEPING}


class _Tracer(fx.Tracer):
    """Remembers what each module returned and gives operations a lasting name.

    Names follow torchvision's feature extraction: the path of the module, the
    operation and, from the second of its kind on, a number: ``layer1.0.add``,
    ``layer1.0.relu_1``. A layer's calls are numbered from 0, so that the first of
    several can be named too.
    """

    def __init__(
        self, module: nn.Module, n_inputs: int, taps: Sequence[str] | None
    ) -> None:
        super().__init__()
        self._n_inputs = n_inputs
        self._taps = None if taps is None else [f"module.{tap}" for tap in taps]
        named = module.named_modules(remove_duplicate=False)
        self.modules = {name: m for name, m in named if name}
        self.outputs: dict[nn.Module, list[Any]] = defaultdict(list)
        self.node_of: dict[str, fx.Node] = {}
        self.name_of: dict[fx.Node, str] = {}
        self._thread = threading.get_ident()

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        names = [f"input_{i}" for i in range(self._n_inputs)]
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in names]
        return root_fn, [self.root, *inputs]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self._taps is None:
            return super().is_leaf_module(m, module_qualified_name)
        inside = f"{module_qualified_name}."
        return not any(tap.startswith(inside) for tap in self._taps)

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


def unknown_tap(tap: str, known: Sequence[str]) -> ValueError:
    """Make the error for a tap that names nothing."""
    return ValueError(
        f"tap {tap!r} is not in the module. Near names: {near_names(tap, known)}. "
        "All names: [name for name, _ in module.named_modules()]; operations inside a "
        "module: torchvision.models.feature_extraction.get_graph_node_names(module)[1]."
    )
