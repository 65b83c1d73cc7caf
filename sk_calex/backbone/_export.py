"""Find taps in the graph that torch.export makes of a module."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from sk_calex.backbone._graph import CannotCutError, ModuleGraph, State
from sk_calex.backbone._trace import TRACING, attributes_kept, unknown_tap

__all__ = ["ExportedModule"]


class ExportedModule:
    """The graph of a module by torch.export, for those that torch.fx cannot trace.

    Control flow over shapes and settings is followed; operations are those of ATen, so
    nothing in it is a layer that could be folded. The number of samples stays open.

    Parameters
    ----------
    root : torch.nn.Module
        Takes the tensors of a batch and calls its only child, ``module``, with them.
    batch : tuple of Tensor
        A batch of at least two samples.
    """

    def __init__(self, root: nn.Module, batch: State) -> None:
        module: Any = root.module
        self._modules = dict(module.named_modules(remove_duplicate=False))
        # A batch size that the module fixes is an error of torch.export.
        size = torch.export.Dim("batch", min=1)
        # Example tensors made in inference mode cannot be copied by torch.export.
        with TRACING, attributes_kept(module), _quiet(), torch.inference_mode(False):
            try:
                program = torch.export.export(
                    root,
                    tuple(tensor.clone() for tensor in batch),
                    dynamic_shapes=(tuple({0: size} for _ in batch),),
                    strict=False,
                )
            except Exception as error:
                first = str(error).strip().partition("\n")[0]
                raise CannotCutError(
                    f"torch.export cannot follow it ({type(error).__name__}: {first})."
                ) from error
        signature = program.graph_signature
        kept = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        values: dict[fx.Node, Any] = {}
        inputs, nodes = [], []
        for node in program.graph.nodes:
            if node.op == "placeholder":
                if node.name in signature.user_inputs:
                    inputs.append(node)
                else:
                    values[node] = _value(program, root, kept, node.name)
                    nodes.append(node)
            elif node.op == "get_attr":
                values[node] = getattr(program.graph_module, str(node.target))
                nodes.append(node)
            elif node.op == "call_function" and not _is_check(node):
                nodes.append(node)
        *_, output = program.graph.nodes
        result = output.args[0][-1]
        if not isinstance(result, fx.Node):
            raise CannotCutError(f"torch.export gives {result!r} for the output.")
        self.graph = ModuleGraph(
            nodes, inputs, result, values, {node: node.name for node in nodes}
        )
        self._calls, self._varying = _calls(nodes), self.graph.varying()

    def find(self, tap: str) -> fx.Node:
        """Find the node whose value is the tap.

        Raises
        ------
        ValueError
            If no module has that name.
        CannotCutError
            If the module does not give one value to what follows it.
        """
        if tap not in self._modules or not tap:
            raise unknown_tap(tap, list(self._modules))
        leaving = self._leaving(tap)
        if len(leaving) != 1:
            names = [node.name for node in leaving]
            raise CannotCutError(
                f"tap {tap!r} gives {len(leaving)} values {names} to what follows it "
                "in the graph of torch.export; a tap gives one."
            )
        return leaving[0]

    def outputs(self) -> dict[str, fx.Node]:
        """Return the nodes of the modules that give one value to what follows them."""
        found = ((name, self._leaving(name)) for name in self._calls)
        return {name: nodes[0] for name, nodes in found if len(nodes) == 1}

    def _leaving(self, name: str) -> list[fx.Node]:
        """Return the nodes inside a module that others outside of it use."""
        inside = self._calls.get(name, set())
        return [
            node
            for node in self.graph.nodes
            if node in inside
            and node in self._varying
            and (node is self.graph.result or not inside.issuperset(node.users))
        ]


def _calls(nodes: list[fx.Node]) -> dict[str, set[fx.Node]]:
    """Return the nodes that each module has run, by its name."""
    calls: dict[str, set[fx.Node]] = {}
    for node in nodes:
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            # Paths count the calls of one module: "encoder.layer@1".
            name = path.removeprefix("module").removeprefix(".")
            if name:
                calls.setdefault(name, set()).add(node)
    return calls


def _value(
    program: torch.export.ExportedProgram,
    root: nn.Module,
    kept: dict[str, str],
    name: str,
) -> Any:
    """Return the module's own parameter or buffer, or a constant of its code."""
    if name not in kept:
        constants = program.graph_signature.inputs_to_lifted_tensor_constants
        return program.constants[constants[name]]
    path, _, last = kept[name].rpartition(".")
    owner = root.get_submodule(path)
    value = getattr(owner, last, None)
    if value is None:
        raise CannotCutError(f"{kept[name]!r} of the exported module is not found.")
    return value


def _is_check(node: fx.Node) -> bool:
    """Tell whether a node only checks what was true of the example."""
    name = str(node.target)
    return not node.users and ("_assert" in name or "sym_constrain" in name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch.export tells developers from users, who did not call it."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
