"""The network that is given where a saved backbone is loaded."""

from __future__ import annotations

import copy
from typing import Any

from sklearn.frozen import FrozenEstimator
from torch import nn

from sk_calex.utils._saving import LoadError

__all__ = ["check_same_network", "given_network"]


def given_network(
    backbone: Any, kind: type[Any], state: dict[str, Any]
) -> dict[str, Any]:
    """Return what a folder does not hold: the network, its preprocessing, the store.

    Parameters
    ----------
    backbone : torch.nn.Module, FrozenBackbone or FrozenEstimator
        What was given to load with.
    kind : type
        `FrozenBackbone`, which imports this file.
    state : dict
        What was saved. Saved weights are loaded into a copy of the network.

    Returns
    -------
    given : dict
        Values of `module`, `preprocess` and `cache`.

    Raises
    ------
    LoadError
        If `backbone` holds no network, or the saved weights do not fit it.
    """
    name = state["module"]
    if isinstance(backbone, FrozenEstimator):
        backbone = backbone.estimator
    if isinstance(backbone, nn.Module):
        backbone = kind(backbone, [])
    if not isinstance(backbone, kind):
        raise LoadError(
            f"backbone={backbone!r}, but the estimator was fitted with a network, "
            f"a {name}, which is not in the folder. Give the torch module, or a "
            "FrozenBackbone with it and its `preprocess`."
        )
    given = {k: getattr(backbone, k) for k in ("module", "preprocess", "cache")}
    if "weights" in state:
        given["module"] = _with_weights(given["module"], state["weights"], name)
    return given


def check_same_network(fingerprint: str, state: dict[str, Any]) -> None:
    """Refuse a network that is not the one whose features were fitted on.

    Parameters
    ----------
    fingerprint : str
        Of the backbone that was loaded, with the network that was given.
    state : dict
        What was saved.

    Raises
    ------
    LoadError
        If the fingerprint that was saved is another one.
    """
    saved = state["fingerprint"]
    if fingerprint != saved:
        raise LoadError(
            f"backbone is another network than the {state['module']} that the "
            "estimator was fitted with: weights, code or preprocessing differ (its "
            f"fingerprint is {fingerprint[:12]}..., not {saved[:12]}...). Give the "
            "same network in eval form, with the same `preprocess` and the versions "
            "of Python and of the packages that define it; for another one, fit again."
        )


def _with_weights(module: nn.Module, weights: Any, name: str) -> nn.Module:
    """Load weights into a copy of a module: the caller's stays as it is."""
    module = copy.deepcopy(module).requires_grad_(False)
    try:
        # As they are: their dtypes count, and the module may have no values yet.
        module.load_state_dict(weights, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise LoadError(
            f"the folder holds the weights of a {name}, which do not fit the "
            f"{type(module).__name__} that was given as the backbone: {error}. Give "
            "a network made by the same code and settings."
        ) from error
    return module
