"""Suggest where to tap a module: names, shapes, costs, and a spread over the MACs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from sk_calex.backbone._export import ExportedModule
from sk_calex.backbone._graph import CannotCutError, ModuleGraph, State
from sk_calex.backbone._maps import DEFAULT_POOL, tap_maps
from sk_calex.backbone._stages import Batch, take_rows
from sk_calex.backbone._trace import TracedModule
from sk_calex.backbone._whole import WholeModule, check_module, check_whole
from sk_calex.branches._defaults import count_unfitted, default_branch_for
from sk_calex.utils._flops import count_macs, unchecked_macs
from sk_calex.utils._modes import inference_mode_for

__all__ = ["SuggestedTaps", "TapCandidate", "suggest_taps"]

# Shares of the MACs between which taps are spread (our definition): an earlier tap
# has little to go by, a later one little to save.
_SPREAD = (0.15, 0.75)
# What one level deeper in the module costs a candidate, in shares of the MACs: ends of
# blocks are better places than layers inside of them.
_DEPTH_PRICE = 0.03
# A tap must leave something to save, and come after something.
_LEAST_SHARE = 0.02


@dataclass(frozen=True)
class TapCandidate:
    """A place where one tensor crosses, so that a module can be cut there.

    Parameters
    ----------
    tap : str
        Name of the submodule.
    shape : tuple of int
        Shape of its features for one sample, before pooling.
    macs : float
        Share of the module's MACs that is spent up to there, from 0 to 1.
    head : float
        MACs of the branch that ``branch=None`` chooses by cost there, on the pooled
        features, as a share of the module's. Above 5 % of what follows the tap even the
        cheapest head is dear.
    suggested : bool
        Whether it is among the taps that are proposed.
    """

    tap: str
    shape: tuple[int, ...]
    macs: float
    head: float
    suggested: bool


class SuggestedTaps:
    """Candidates for taps in the order of execution, and a proposal.

    Printed as a table.

    Attributes
    ----------
    candidates : tuple of TapCandidate
        All places where one tensor crosses.
    taps : list of str
        The proposal, for `FrozenBackbone`.
    """

    def __init__(self, candidates: Sequence[TapCandidate]) -> None:
        self.candidates = tuple(candidates)
        self.taps = [c.tap for c in self.candidates if c.suggested]

    def to_frame(self) -> Any:
        """Return the candidates as a data frame.

        Returns
        -------
        frame : pandas.DataFrame
            One row per candidate, columns as in `TapCandidate`.
        """
        import pandas as pd  # optional

        return pd.DataFrame([asdict(candidate) for candidate in self.candidates])

    def __repr__(self) -> str:
        width = max(len(candidate.tap) for candidate in self.candidates)
        lines = [f"  {'tap':<{width}}  {'features':<16} {'MACs':>7} {'head':>7}"]
        for c in self.candidates:
            shape = " x ".join(map(str, c.shape))
            lines.append(
                f"{'*' if c.suggested else ' '} {c.tap:<{width}}  {shape:<16} "
                f"{c.macs:7.1%} {c.head:7.1%}"
            )
        return "\n".join(lines)


def suggest_taps(
    module: nn.Module,
    sample: Any,
    n: int = 3,
    *,
    output: str | int | None = None,
) -> SuggestedTaps:
    """List where a module can be tapped, and propose taps spread over its MACs.

    Parameters
    ----------
    module : torch.nn.Module
        The classifier.
    sample : array, tensor or dict of them, of shape (n_samples, ...)
        A few samples as the module takes them, after preprocessing; a dict for a
        module that is called with keywords. The first two are run.
    n : int, default=3
        Number of taps to propose; fewer where there are fewer places.
    output : str or int, default=None
        Which part of what the module returns are the logits, as of `FrozenBackbone`.

    Returns
    -------
    suggested : SuggestedTaps
        The table, with the proposal in ``taps``. Of candidates after which the same
        share of the MACs is spent only one is listed: an outer module rather than an
        inner one, maps rather than vectors, the last one.

    Raises
    ------
    ValueError
        If neither torch.fx nor torch.export can follow the module, if it can be cut
        nowhere, or if `n` is less than 1.

    Notes
    -----
    Taps are the candidates next to shares of the MACs that are spread evenly from 15 to
    75 %; a candidate one level deeper in the module has to be 3 % nearer (our
    definition). `select_taps` tells afterwards which taps pay on data.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sk_calex import suggest_taps
    >>> def block(width):
    ...     return nn.Sequential(nn.LazyConv2d(width, 3, 2, padding=1), nn.ReLU())
    >>> module = nn.Sequential(
    ...     block(64), block(128), block(256), nn.Flatten(), nn.LazyLinear(2))
    >>> x = torch.zeros(1, 3, 64, 64)
    >>> _ = module(x)  # makes the weights
    >>> suggest_taps(module, x, n=2)
      tap  features            MACs    head
    * 0  64 x 32 x 32        4.5%    2.2%
    * 1  128 x 16 x 16      52.2%    1.4%
    """
    check_module(module)
    if n < 1:
        raise ValueError(f"n={n} must be at least 1: the number of taps to propose.")
    floating = (p.dtype for p in module.parameters() if p.is_floating_point())
    dtype = next(floating, torch.float32)
    place = next((p.device for p in module.parameters()), torch.device("cpu"))

    def as_input(value: Any) -> Tensor:
        tensor = torch.as_tensor(value)[:2].to(place)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    batch: Batch
    if isinstance(sample, Mapping):
        batch = {name: as_input(value) for name, value in sample.items()}
    else:
        batch = as_input(sample)
    return suggest(module, batch, n, output)


def suggest(
    module: nn.Module, batch: Batch, n: int, output: str | int | None
) -> SuggestedTaps:
    """List and propose taps, on a prepared batch."""
    keys, batches = take_rows(batch)
    whole = WholeModule(module, keys, output)
    with inference_mode_for(module):
        n_outputs = check_whole(whole, batches)[0].numel()
        places = _find_places(whole, batches, n)
    if not places:
        raise ValueError(
            "the module can be cut nowhere: there is no submodule whose output alone "
            "is needed after it. Give explicit stages in an nn.Sequential, and taps."
        )
    shares = np.array([share for _, _, share in places])
    names = [name for name, _, _ in places]
    proposed = _spread(names, shares, n)
    n_classes = max(2, n_outputs)
    total = max(1, count_macs(whole, *batches[0]))
    candidates = []
    for name, shape, share in places:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # FrozenBackbone says it
            (tap,) = tap_maps(module, [name], [shape], pool=DEFAULT_POOL, layout=None)
        branch = default_branch_for(tap.shape, n_classes, (1 - share) * total)
        head = count_unfitted(branch, tap.shape, n_classes) / total
        candidates.append(TapCandidate(name, shape, share, head, name in proposed))
    return SuggestedTaps(candidates)


def _find_places(
    whole: WholeModule, batches: Sequence[State], n: int
) -> list[tuple[str, tuple[int, ...], float]]:
    """Measure the graph by torch.fx; where that has too few places, by torch.export."""
    places, refusals = [], []
    try:
        places = _measure(TracedModule(whole, len(batches[0])), batches)
    except CannotCutError as error:
        refusals.append(error)
    if len(places) < n:
        try:
            exported = _measure(ExportedModule(whole, batches[-1]), batches)
            places = max(places, exported, key=len)
        except CannotCutError as error:
            refusals.append(error)
    if len(refusals) == 2:
        raise ValueError(
            f"{refusals[0]} {refusals[1]} So taps cannot be suggested: name some, or "
            "give explicit stages in an nn.Sequential."
        ) from refusals[1]
    return places


def _measure(
    found: TracedModule | ExportedModule, batches: Sequence[State]
) -> list[tuple[str, tuple[int, ...], float]]:
    """Name, shape and share of the MACs of places where one tensor crosses."""
    graph = found.graph
    crossing = graph.count_crossing()
    shapes, spent = _run_nodes(graph, batches)
    total = max(1, spent[graph.nodes[-1]])
    varying = graph.varying()
    best: dict[int, tuple[tuple[int, ...], str, fx.Node]] = {}
    order = {node: i for i, node in enumerate(graph.nodes)}
    for name, node in found.outputs().items():
        if node not in varying or node not in shapes or crossing[node] != 1:
            continue
        if node is graph.result or not any(user in varying for user in node.users):
            continue
        share = spent[node] / total
        if not _LEAST_SHARE <= share <= 1 - _LEAST_SHARE / 10:
            continue
        # Outer modules, maps rather than vectors, the last of several.
        rank = (name.count("."), -len(shapes[node]), -order[node], len(name))
        if spent[node] not in best or rank < best[spent[node]][0]:
            best[spent[node]] = (rank, name, node)
    ordered = sorted(best.items())
    return [(name, shapes[node], macs / total) for macs, (_, name, node) in ordered]


def _run_nodes(
    graph: ModuleGraph, batches: Sequence[State]
) -> tuple[dict[fx.Node, tuple[int, ...]], dict[fx.Node, int]]:
    """Measure shapes per sample of nodes with rows, and MACs up to each node."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    spent: dict[fx.Node, int] = {}
    total = 0
    for batch in (batches[-1], batches[0]):
        alone, n_rows = batch is batches[0], len(batch[0])
        env: dict[fx.Node, Any] = dict(zip(graph.inputs, batch, strict=True))
        last = {used: node for node in graph.nodes for used in node.all_input_nodes}
        for node in graph.nodes:
            if node in graph.values and node.op != "call_module":
                env[node] = graph.values[node]
            else:
                args = fx.map_arg(node.args, env.__getitem__)
                kwargs = fx.map_arg(node.kwargs, env.__getitem__)
                if alone:
                    total += unchecked_macs(_Call(graph, node), args, kwargs).macs
                env[node] = value = _Call(graph, node)(args, kwargs)
                rows = isinstance(value, Tensor) and value.shape[:1] == (n_rows,)
                if rows and value.is_floating_point():
                    if not alone:
                        shapes[node] = tuple(value.shape[1:])
                elif alone:
                    shapes.pop(node, None)
            spent[node] = total
            for used in node.all_input_nodes:
                if last[used] is node:
                    del env[used]
    return shapes, spent


class _Call:
    """One operation of a graph, as a function of its arguments."""

    def __init__(self, graph: ModuleGraph, node: fx.Node) -> None:
        self._layer, self._node = graph.values.get(node), node

    def __call__(self, args: Any, kwargs: Any) -> Any:
        """Run it."""
        if self._node.op == "call_module":
            return self._layer(*args, **kwargs)  # type: ignore[misc]
        if self._node.op == "call_method":
            return getattr(args[0], str(self._node.target))(*args[1:], **kwargs)
        return self._node.target(*args, **kwargs)  # type: ignore[operator]


def _spread(names: Sequence[str], shares: Any, n: int) -> set[str]:
    """Choose the names next to shares of the MACs that are spread evenly."""
    targets = np.linspace(*_SPREAD, n) if n > 1 else [sum(_SPREAD) / 2]
    price = _DEPTH_PRICE * np.array([name.count(".") for name in names])
    chosen: set[str] = set()
    for target in targets:
        for i in np.argsort(np.abs(shares - target) + price, kind="stable"):
            if names[i] not in chosen:
                chosen.add(names[i])
                break
    return chosen
