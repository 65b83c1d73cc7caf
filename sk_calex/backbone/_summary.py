"""The stages of a backbone as a table for notebooks."""

from __future__ import annotations

from typing import Any

from sk_calex.backbone._layout import TapLayout
from sk_calex.utils._html import Cell, picked, si, table

__all__ = ["backbone_summary", "stage_cells"]


def backbone_summary(backbone: Any) -> str:
    """Write the table of a `FrozenBackbone`: taps, and once fitted shapes and MACs."""
    name = f"{type(backbone).__name__} of {type(backbone.module).__name__}"
    layout = getattr(backbone, "layout_", None)
    if layout is None:
        return unfitted_taps(f"{name}: not fitted", backbone)
    rows = [stage_cells(layout, stage) for stage in picked(layout.n_taps)]
    return table(
        f"{name}: {layout.n_taps} taps, {layout.width:,} columns ({backbone.dtype})",
        ("stage", "features", "columns", "MACs"),
        rows,
        "MACs are those of one sample from the stage before.",
    )


def unfitted_taps(caption: str, backbone: Any) -> str:
    """Write the table of the taps alone; empty where they are not given by name."""
    taps = backbone.taps
    if not isinstance(taps, list | tuple) or not all(isinstance(t, str) for t in taps):
        return ""
    names = [*taps, "output"]
    rows = [["…" if k is None else names[k]] for k in picked(len(taps))]
    return table(caption, ("stage",), rows)


def stage_cells(layout: TapLayout, stage: int | None) -> list[Cell | str]:
    """Return name, shape, number of columns and MACs of a stage; None: dots."""
    if stage is None:
        return ["…"] * 4
    last = stage == layout.n_taps
    shape = (layout.n_outputs,) if last else layout.shapes[stage]
    columns = layout.columns(stage)
    where = f"{columns.start} to {columns.stop - 1}"
    macs: Cell | str = "?"
    if layout.stage_macs is not None:
        mine, total = layout.stage_macs[stage], sum(layout.stage_macs)
        macs = Cell(si(mine), f"{mine:,}", mine / total if total else None)
    return [
        Cell("output") if last else Cell(layout.names[stage], layout.names[stage]),
        " \N{MULTIPLICATION SIGN} ".join(map(str, shape)),
        Cell(f"{columns.stop - columns.start:,}", where),
        macs,
    ]
