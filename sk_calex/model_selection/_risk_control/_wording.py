"""A certificate in words."""

from __future__ import annotations

from typing import Any

from sk_calex.cascade._costs import cost_name
from sk_calex.model_selection._estimators import cascade_in

__all__ = ["certificate_report"]


def certificate_report(controller: Any) -> str:
    """Write the promise, its confidence, how it was found, and what it does not say."""
    results, risk = controller.path_results_, controller.max_risk
    n, level = controller.n_samples_, controller.confidence_level
    drop = controller.risk == "accuracy_drop"
    cost = cost_name(cascade_in(controller.best_estimator_))
    if controller.is_fallback_:
        promise = (
            f"No operating point that saves {cost} could be certified. No sample "
            "exits: every one is answered as the last stage does, and the heads are "
            "paid for. Serve the backbone itself."
        )
    elif drop:
        promise = (
            f"On new data of the same kind the cascade loses at most {100 * risk:.3g} "
            "points of accuracy against its last stage answering every sample."
        )
    else:
        promise = (
            "On new data of the same kind the cascade answers at most "
            f"{100 * risk:.3g} % of the samples differently from its last stage; its "
            "accuracy is therefore at most as much lower."
        )
    best = controller.best_index_
    labels = "with labels" if results.n_lost[best] >= 0 else "without labels"
    lines = [
        f"Promise: {promise}",
        f"Confidence: {level:.1%}, over draws of the {n:,} certifying rows: of "
        f"controllers fitted on other such draws, at most {1 - level:.1%} would break "
        "their promise.",
        f"How: {len(results) - 1} operating points, fixed before, were tested {labels} "
        f"from strict to lax up to the first that failed; {results.certified.sum() - 1}"
        f" hold together. Taken: {_name(controller)}, p "
        f"{_short_p(results.p_value[best])}.",
        f"Estimates, which bound nothing: {'a drop' if drop else 'a disagreement'} of "
        f"{100 * results.risk_estimate[best]:.2f} points there, and "
        f"{results.flops_reduction[best]:.1%} of the plain backbone's {cost} saved.",
        "Not said: anything about data of another kind than the certifying rows, about "
        "the accuracy of the last stage, about single classes or branches, or about "
        f"what is saved. A test set of {n:,} rows or fewer may show a larger "
        f"{'drop' if drop else 'disagreement'} by chance.",
    ]
    return "\n".join(lines)


def _name(controller: Any) -> str:
    if controller.is_fallback_:
        return "the last stage alone"
    what = "point" if not isinstance(controller.path, str) else "knob value"
    return f"{what} {controller.best_margin_}"


def _short_p(p_value: float) -> str:
    return "below 0.0001" if p_value < 1e-4 else f"= {p_value:.2g}"
