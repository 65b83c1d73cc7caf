"""Parameter and array checks shared by all modules."""

from __future__ import annotations

import difflib
import functools
import math
import warnings
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    _num_samples,
    column_or_1d,
)

from sk_calex.utils._stage_answer import softmax_in_float64

__all__: list[str] = []


def resolve_device(
    device: str | torch.device, *, needs_float64: bool = False
) -> torch.device:
    """Return the device to compute on.

    Parameters
    ----------
    device : str or torch.device
        A device, or "auto": the first of CUDA, XPU and MPS that torch sees, else the
        CPU. XPU and MPS lack operators that others have: one small network is tried
        there first, and the CPU taken where it fails.
    needs_float64 : bool, default=False
        Whether "auto" passes over devices that do not compute in it.

    Returns
    -------
    device : torch.device
        The device.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        seen = {
            "xpu": torch.xpu.is_available(),
            "mps": torch.backends.mps.is_available(),
        }
        for kind, is_seen in seen.items():
            if is_seen and _computes(torch.device(kind), needs_float64):
                return torch.device(kind)
        return torch.device("cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is not a torch device. Use 'auto', 'cpu', 'cuda', "
            f"'cuda:0', ... ({error})"
        ) from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={device!r} is not usable: torch finds no CUDA device. "
            "Use device='auto' or device='cpu'."
        )
    return resolved


@functools.cache
def _computes(device: torch.device, needs_float64: bool) -> bool:
    """Try on a device what the stages of a network, their pooling and heads need."""
    x = torch.linspace(-1, 1, 2 * 3 * 7 * 7).view(2, 3, 7, 7)
    weight = torch.linspace(-1, 1, 4 * 3 * 3 * 3).view(4, 3, 3, 3)

    def run(place: torch.device) -> torch.Tensor:
        maps = F.conv2d(x.to(place), weight.to(place), padding=1).relu()
        logits = F.adaptive_avg_pool2d(maps, 4).flatten(1).softmax(dim=1)
        return (logits.double() if needs_float64 else logits).cpu().double()

    try:
        found = run(device)
    except (RuntimeError, TypeError):  # an operator or a dtype that it lacks
        return False
    return torch.allclose(found, run(torch.device("cpu")), atol=1e-4)


def near_names(name: str, known: Iterable[str], n: int = 5) -> str:
    """Find names close to `name`, for messages; the first few where none is close."""
    options = list(known)
    near = difflib.get_close_matches(name, options, n=n, cutoff=0.5) or options[:n]
    return ", ".join(repr(option) for option in near)


def check_finite(values: NDArray[Any] | torch.Tensor, what: str, advice: str) -> None:
    """Refuse NaN and infinity: no exit may ever come from either."""
    if isinstance(values, torch.Tensor):
        # A sum is finite only if every term is; it is one cheap kernel.
        finite = math.isfinite(values.sum().item()) or bool(
            torch.isfinite(values).all()
        )
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            total = values.sum()
        finite = bool(np.isfinite(total)) or bool(np.isfinite(values).all())
    if not finite:
        raise ValueError(f"{what} contains NaN or infinity. {advice}")


def check_open_interval(value: float, low: float, high: float, name: str) -> None:
    """Refuse what does not lie strictly between two numbers."""
    if not low < value < high:  # nor NaN
        raise ValueError(f"{name}={value!r} must lie between {low} and {high}.")


def is_auto(value: Any) -> bool:
    """Say whether a parameter is to be found from the data."""
    return isinstance(value, str) and value == "auto"


def check_margin(margin: float, name: str = "margin") -> float:
    """Check that a margin is finite and below 1; a negative one demands more."""
    value = float(margin)
    if not np.isfinite(value) or value >= 1:
        raise ValueError(
            f"{name}={margin!r} is not usable: a margin is a finite number below 1. "
            "0 requires the backbone's precision of each class, 0.05 gives up 5 %, "
            "-0.05 requires 5 % more."
        )
    return value


def check_margins(
    margin: Any, n_branches: int | None, name: str = "margin"
) -> NDArray[np.float64]:
    """Check the margins of the branches: one for all, or a sequence with one for each.

    Where the number of branches is not known yet, only the numbers are checked.
    """
    if isinstance(margin, Real):
        return np.full(n_branches or 1, check_margin(float(margin), name))
    if isinstance(margin, str) or np.ndim(margin) != 1:
        raise ValueError(
            f"{name}={margin!r} is not usable: give one number for all branches, or a "
            "sequence of numbers, one a branch."
        )
    values = [check_margin(each, f"{name}[{i}]") for i, each in enumerate(margin)]
    if n_branches is not None and len(values) != n_branches:
        raise ValueError(
            f"{name} is a sequence of {len(values)} numbers, but there are "
            f"{n_branches} branches. Give one number a branch, or one for all."
        )
    return np.array(values)


def check_probabilities(X: ArrayLike, name: str = "X") -> NDArray[np.float64]:
    """Check class probabilities of shape (n_samples, n_classes), as float64."""
    proba = np.asarray(X, dtype=np.float64)
    if proba.ndim != 2 or proba.shape[1] < 2:
        raise ValueError(
            f"{name} must hold class probabilities of shape (n_samples, n_classes) "
            f"with at least 2 classes, got shape {proba.shape}. Give the output of "
            "predict_proba."
        )
    if len(proba) == 0:
        raise ValueError(
            f"Found array with 0 sample(s) (shape={proba.shape}) while a minimum of 1 "
            f"is required: {name} is empty."
        )
    check_finite(proba, name, "Give the output of predict_proba.")
    sums = proba.sum(axis=1)
    if proba.min() < 0 or np.abs(sums - 1).max() > 1e-3:
        raise ValueError(
            f"{name} must hold probabilities: entries in [0, 1], rows that sum to 1; "
            f"the smallest entry is {proba.min():.4g} and the row sums go from "
            f"{sums.min():.4g} to {sums.max():.4g}. Give the output of predict_proba, "
            "not of decision_function."
        )
    return proba


# From here on floats do not tell all integers apart.
_EXACT_INTEGERS = 2**53


def check_labels(y: ArrayLike, name: str = "y") -> NDArray[Any]:
    """Check class labels of shape (n_samples,), which must differ and sort."""
    labels: NDArray[Any] = column_or_1d(y, warn=True)
    assert_all_finite(labels, input_name=name)
    if labels.dtype.kind == "O":
        kinds = {type(label) for label in labels.tolist()}
        if len(kinds) > 1 and not all(issubclass(kind, Real) for kind in kinds):
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(
                f"{name} mixes labels of the types {names}, which cannot be sorted. "
                f"Give labels of one type, such as [str(label) for label in {name}]."
            )
        if int in kinds and len(labels):
            labels = _as_int64(labels, name)
    elif labels.dtype.kind == "f" and np.abs(labels).max(initial=0) > _EXACT_INTEGERS:
        raise ValueError(
            f"{name} holds {labels[np.abs(labels).argmax()]!r}, but numbers beyond "
            "2**53 are not distinct as floats. Give such labels as strings."
        )
    check_are_classes(labels)
    return labels


def check_are_classes(labels: NDArray[Any]) -> None:
    """Refuse targets of a regression; classes with few rows are classes."""
    # Each several times: where a class has less than two rows on average, scikit-learn
    # would warn that it may be a regression.
    check_classification_targets(np.tile(np.unique(labels), 3))


def _as_int64(labels: NDArray[Any], name: str) -> NDArray[Any]:
    limits = np.iinfo(np.int64)
    largest = max(labels.tolist(), key=abs)
    if not limits.min <= largest <= limits.max:
        raise ValueError(
            f"{name} holds the integer {largest}, which does not fit into 64 bits. "
            f"Give such labels as strings: [str(label) for label in {name}]."
        )
    return labels


def check_sample_weight(
    sample_weight: ArrayLike | None, X: NDArray[Any]
) -> NDArray[np.float64]:
    """Check that weights are finite, not negative, not all zero; None means ones."""
    # scikit-learn refuses zeros only since 1.8, and without the parameter's name.
    if sample_weight is not None and not np.any(np.asarray(sample_weight)):
        raise ValueError(
            "sample_weight is zero for all samples: a weight of zero means absence. "
            "Give some sample a positive weight, or None."
        )
    given, n = np.asarray(sample_weight), _num_samples(X)
    if given.ndim == 1 and len(given) != n:
        raise ValueError(
            f"sample_weight has {len(given)} values, but there are {n} samples. Give "
            "one weight for each sample."
        )
    weight: NDArray[np.float64] = _check_sample_weight(
        sample_weight, X, dtype=np.float64
    )
    if weight.min(initial=0.0) < 0:
        raise ValueError(
            f"Negative values in sample_weight: the least is {weight.min():g}. Give "
            "weights of at least 0, which means absence."
        )
    return weight


def note_features(estimator: Any, source: Any) -> None:
    """Set, of an estimator, what its X looked like to another one."""
    for name in ("n_features_in_", "feature_names_in_"):
        estimator.__dict__.pop(name, None)  # of an earlier fit
        if hasattr(source, name):
            setattr(estimator, name, getattr(source, name))


def is_frame(X: Any) -> bool:
    """Tell whether X is a data frame, of pandas, polars or their like."""
    return all(hasattr(X, name) for name in ("columns", "dtypes", "shape"))


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """View `array` as a tensor without a copy, read-only memory maps included."""
    array = np.asarray(array)
    if min(array.strides, default=0) < 0:
        array = np.ascontiguousarray(array)  # torch has no negative strides
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        # Nothing here writes to the tensor; copying a memory map would defeat it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(array)


def sent_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Send a tensor to a device; to CUDA from pinned memory, so that none waits."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def softmax64(logits: NDArray[Any] | torch.Tensor) -> NDArray[np.float64]:
    """Compute softmax over the last axis in float64 numpy, where exits are decided."""
    if isinstance(logits, torch.Tensor):
        # To the CPU first: not every device has float64.
        logits = logits.detach().cpu().double().numpy()
    return softmax_in_float64(logits)
