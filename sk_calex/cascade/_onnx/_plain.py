"""Read JSON that somebody else may have written: right in kind and size, or refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "field",
    "index_list",
    "integer",
    "name_list",
    "number_array",
    "plain_numbers",
]

_INFINITE = {"inf": math.inf, "-inf": -math.inf}
_MAX_NAME = 1000


def field(record: Any, name: str) -> Any:
    """Return one entry of a JSON object."""
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f"the manifest has no {name!r} where one belongs.")
    return record[name]


def integer(value: Any, what: str, low: int, high: int) -> int:
    """Return a JSON integer from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is no integer from {low} to {high} in the manifest.")
    return value


def index_list(value: Any, what: str, length: int, below: int) -> NDArray[np.intp]:
    """Return a list of different indices, each from 0 to ``below - 1``."""
    if not isinstance(value, list) or len(value) != length:
        raise ValueError(f"{what} is no list of {length} integers in the manifest.")
    indices = [integer(each, what, 0, below - 1) for each in value]
    if len(set(indices)) < length:
        raise ValueError(f"{what} repeats an index in the manifest.")
    return np.array(indices, dtype=np.intp)


def name_list(value: Any, what: str) -> tuple[str, ...]:
    """Return a list of different names that is not empty."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{what} is no list of names in the manifest.")
    for name in value:
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
            raise ValueError(f"{what} holds {name!r:.50}, which is no name.")
    if len(set(value)) < len(value):
        raise ValueError(f"{what} repeats a name in the manifest.")
    return tuple(value)


def number_array(value: Any, what: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return nested lists of numbers, "inf" and "-inf" as an array of this shape."""
    if not shape:
        if isinstance(value, str):
            value = _INFINITE.get(value)
        if type(value) not in (int, float):
            raise ValueError(f"{what} holds what is no number in the manifest.")
        try:
            number = float(value)
        except OverflowError as error:
            raise ValueError(f"{what} holds a number that is too large.") from error
        if math.isnan(number):
            raise ValueError(f"{what} holds NaN in the manifest.")
        return np.array(number)
    if not isinstance(value, list) or len(value) != shape[0]:
        raise ValueError(f"{what} has not the shape {shape} in the manifest.")
    rows = [number_array(each, what, shape[1:]) for each in value]
    return np.array(rows, dtype=np.float64).reshape(shape)


def plain_numbers(array: Any) -> Any:
    """Return an array as nested lists of JSON numbers, "inf" and "-inf"."""
    if isinstance(array, np.ndarray | list | tuple):
        return [plain_numbers(each) for each in array]
    number = float(array)
    if math.isnan(number):
        raise ValueError("NaN has no place in a manifest.")
    return number if math.isfinite(number) else repr(number)
