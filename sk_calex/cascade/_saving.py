"""What of a fitted cascade is saved, and what its model card says."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator

from sk_calex.calibration._exit_rule import first_exits
from sk_calex.cascade._costs import Prices, cost_name, depth_prices
from sk_calex.utils._saving import model_card, plain_seed

__all__ = ["cascade_card", "plain_state"]


def plain_state(cascade: Any) -> dict[str, Any]:
    """Return the fitted state of a cascade in plain parts.

    What only another fit would need and has no plain form, a splitter or a folder of
    fits, becomes the default of its parameter.
    """
    state: dict[str, Any] = cascade.__getstate__()
    state["random_state"] = plain_seed(cascade.random_state)
    defaults = inspect.signature(type(cascade)).parameters
    for name in ("cv", "memory"):
        if name in state and not isinstance(state[name], int | float | None):
            state[name] = defaults[name].default
    del state["final_estimator_"]  # that of the last stage
    backbone = state.pop("backbone")
    if cascade.backbone_ is None:
        if isinstance(backbone, FrozenEstimator):
            backbone = backbone.estimator
        state["backbone"] = backbone if hasattr(backbone, "layout_") else None
    return state


def cascade_card(cascade: Any) -> str:
    """Write the model card of a cascade, from its calibration rows."""
    given = cascade.calibration_
    weight = given.weight / given.weight.sum()
    rule = cascade.calibrator_
    depth = first_exits(rule, given.answers)
    right, rows = given.right, np.arange(len(depth))
    facts = {
        "classes": f"{len(cascade.classes_)}",
        "branches": f"{len(cascade.branches_)}",
        "taps": ", ".join(cascade.layout_.names),
        "exit rule": f"`{cascade._exit_rule()!r}`",
        "calibration rows": f"{np.count_nonzero(given.weight)}",
        "accuracy of the last stage": f"{weight @ right[-1]:.2%}",
        "accuracy of the cascade": f"{weight @ right[depth, rows]:.2%}",
    }
    if cascade.backbone_ is None:
        del facts["taps"]
    if cascade.layout_.stage_macs is not None:
        macs = Prices.in_macs(cascade).of_running(cascade._running_heads(rule))
        saved = 1 - weight @ macs.per_depth[depth] / macs.plain
        facts["FLOPs saved, heads counted"] = f"{saved:.1%}"
    if cascade.costs is not None:
        per_depth, plain = depth_prices(cascade, rule)
        saved = 1 - weight @ per_depth[depth] / plain
        facts[f"{cost_name(cascade)} saved, by `costs`"] = f"{saved:.1%}"
    name = type(cascade).__name__
    network = ", backbone=module" if cascade.backbone_ is not None else ""
    text = (
        f"A fitted `{name}` of sk_calex: a frozen classifier with branches that answer "
        f"easy samples early. Load it with `sk_calex.load(folder{network})`.\n\n"
        "Accuracies and savings below are those on the calibration rows, which chose "
        "the thresholds: estimates, not promises."
    )
    return model_card(name, facts, text)
