"""Fitted objects as plain data and back, without pickle.

Values become JSON, arrays and tensors are set aside by name, and objects are written as
the name of a class and its state. Only classes that were registered here can come back,
so a file can choose among them but cannot run code of its own.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from torch import Tensor

__all__ = ["CannotSaveError", "Decoder", "Encoder", "ImportedName", "savable"]

_Class = TypeVar("_Class", bound=type)
_CLASSES: dict[str, type] = {}
_TAG = "~"
_MAX_DEPTH = 40
_CHARACTER = np.dtype("U1").itemsize
# Arrays of strings keep a width up to this beyond that of their longest: a forged one
# would take any memory.
_MOST_CHARACTERS = 1024
# Together they import every class that can be saved. By name: this folder imports no
# other, and the package's __init__ imports a folder only when it is used.
_FOLDERS = ("baselines", "inspection", "model_selection", "policies")
# What scikit-learn keeps on an estimator for the process that it lives in.
_NOT_SAVED = ("_metadata_request", "_skl_callbacks")
#: Ending of the files that hold estimators of scikit-learn.
_SKOPS = ".skops"


class CannotSaveError(TypeError):
    """A value for which there is no plain form."""


def savable(cls: _Class) -> _Class:
    """Let objects of a class be saved by name and state; a class decorator.

    The state is what `_archive_state` returns, by default that of pickle
    (``__getstate__``). It goes to `_restore_archive`, with what the loader was given as
    the backbone; by default to ``__setstate__``, or it becomes the attributes.
    """
    _CLASSES[cls.__name__] = cls
    return cls


@dataclass(frozen=True)
class ImportedName:
    """A function or class of the user's, saved by the name that it is imported by.

    Parameters
    ----------
    name : str
        Module and name in it, as ``module:name``.
    found : object
        What has that name.
    """

    name: str
    found: Any

    @classmethod
    def of(cls, value: Any, where: str) -> ImportedName:
        """Name a value, if whoever imports that name gets the same value.

        Raises
        ------
        CannotSaveError
            If it has no such name.
        """
        module = getattr(value, "__module__", None) or ""
        name = getattr(value, "__qualname__", "")
        if module != "__main__" and name.isidentifier():
            there = getattr(sys.modules.get(module), name, None)
            if there is value:
                return cls(f"{module}:{name}", value)
        raise CannotSaveError(
            f"{where}={value!r} cannot be saved: it is written by the name that it is "
            "imported by, which only a function or class at the top of a module has. "
            "Move it into a file of its own, and import it from there (no lambda, no "
            "functools.partial; more arguments go into head_params)."
        )


class Encoder:
    """Turns values into JSON; arrays and files of other libraries are collected.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Arrays and tensors, contiguous copies on the CPU.
    blobs : dict of str to bytes
        Estimators of scikit-learn, written by skops.
    embedded : bool
        Whether weights of a network are among the tensors.

    Parameters
    ----------
    embed_backbone : bool, default=False
        Whether objects that hold a network are to give its weights, too: what their
        `_archive_weights` returns becomes "weights" of their state.
    """

    def __init__(self, *, embed_backbone: bool = False) -> None:
        self._embed_backbone, self.embedded = embed_backbone, False
        self.tensors: dict[str, Tensor] = {}
        self.blobs: dict[str, bytes] = {}

    def encode(self, value: Any, where: str) -> Any:
        """Turn a value into JSON; `where` names it in errors."""
        if where.count(".") + where.count("[") > _MAX_DEPTH:
            raise CannotSaveError(f"{where} is nested too deeply, or holds itself.")
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int) and not isinstance(value, np.generic):
            return value
        if isinstance(value, float) and not isinstance(value, np.generic):
            if math.isfinite(value):
                return value
            return {_TAG: "float", "value": repr(value)}
        if isinstance(value, np.generic | np.ndarray):
            return self._array(np.asarray(value), where, isinstance(value, np.generic))
        if isinstance(value, Tensor):
            return {_TAG: "tensor", "name": self._keep(value.detach(), where)}
        if isinstance(value, torch.device | torch.dtype):
            name = str(value).removeprefix("torch.")
            return {_TAG: type(value).__name__, "value": name}
        if isinstance(value, list | tuple | set | frozenset):
            kind = type(value).__name__
            if type(value) not in (list, tuple, set, frozenset):
                raise CannotSaveError(f"{where} is a {kind}, which has no plain form.")
            items = (
                sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            )
            parts = [self.encode(v, f"{where}[{i}]") for i, v in enumerate(items)]
            return parts if kind == "list" else {_TAG: kind, "items": parts}
        if isinstance(value, Mapping):
            return self._mapping(value, where)
        return self._object(value, where)

    def _array(self, array: NDArray[Any], where: str, scalar: bool) -> Any:
        kind = "scalar" if scalar else "array"
        if array.dtype.kind == "U":
            strings = [str(v) for v in array.flat]
            longest = max(map(len, strings), default=1)
            width = array.dtype.itemsize // _CHARACTER
            return {
                _TAG: kind,
                "dtype": "str",
                "width": min(width, max(longest, _MOST_CHARACTERS)),
                "shape": list(array.shape),
                "items": strings,
            }
        if array.dtype.kind == "O":
            items = [self.encode(v, f"{where}[{i}]") for i, v in enumerate(array.flat)]
            return {
                _TAG: kind,
                "dtype": "object",
                "shape": list(array.shape),
                "items": items,
            }
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise CannotSaveError(
                f"{where} is an array of dtype {array.dtype}; numbers, booleans and "
                "strings can be saved."
            )
        native = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        bits = native.reshape(-1).view(np.uint8)
        tensor = torch.from_numpy(bits.copy())
        return {
            _TAG: kind,
            "dtype": native.dtype.name,
            "shape": list(array.shape),
            "name": self._keep(tensor, where),
        }

    def _keep(self, tensor: Tensor, where: str) -> str:
        name = where
        while name in self.tensors:
            name += "'"
        self.tensors[name] = tensor.cpu().contiguous().clone()
        return name

    def _mapping(self, value: Mapping[Any, Any], where: str) -> Any:
        if type(value) is not dict:
            kind = type(value).__name__
            raise CannotSaveError(f"{where} is a {kind}, which has no plain form.")
        if all(isinstance(key, str) and key != _TAG for key in value):
            return {k: self.encode(v, f"{where}.{k}") for k, v in value.items()}
        items = [
            [self.encode(k, f"{where}.key"), self.encode(v, f"{where}[{k!r}]")]
            for k, v in value.items()
        ]
        return {_TAG: "dict", "items": items}

    def _object(self, value: Any, where: str) -> Any:
        name = type(value).__name__
        if _CLASSES.get(name) is type(value):
            state = _state_of(value)
            if self._embed_backbone and hasattr(value, "_archive_weights"):
                state["weights"] = value._archive_weights()
                self.embedded = True
            return {
                _TAG: "object",
                "class": name,
                "state": {k: self.encode(v, f"{where}.{k}") for k, v in state.items()},
            }
        if isinstance(value, ImportedName):
            return {_TAG: "imported", "name": value.name}
        if isinstance(value, FrozenEstimator):
            inside = self.encode(value.estimator, f"{where}.estimator")
            return {_TAG: "frozen", "estimator": inside}
        if isinstance(value, BaseEstimator):
            file = f"{where}{_SKOPS}".replace("[", ".").replace("]", "")
            skops = _skops(where, value)
            try:
                self.blobs[file] = skops.dumps(value)
            except Exception as error:  # whatever a part of it raises
                raise CannotSaveError(
                    f"{where} is a {type(value).__module__}.{name}, which skops cannot "
                    f"write ({type(error).__name__}: {error})."
                ) from error
            return {_TAG: "skops", "file": file}
        raise CannotSaveError(
            f"{where} is a {type(value).__module__}.{name}, which has no plain form."
        )


class Decoder:
    """Turns what an `Encoder` made into values again.

    Parameters
    ----------
    tensors, blobs : mapping
        What the encoder collected.
    backbone : object
        What the loader was given in place of the network, which is not in the file.
    trusted : bool
        Whether estimators of scikit-learn may hold types that skops does not know, and
        functions of the user's may be imported by name.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        blobs: Mapping[str, bytes],
        *,
        backbone: Any = None,
        trusted: bool = False,
    ) -> None:
        self.tensors, self.blobs = tensors, blobs
        self.backbone, self.trusted = backbone, trusted

    def decode(self, value: Any, depth: int = 0) -> Any:
        """Turn JSON into the value that it stands for."""
        if depth > 2 * _MAX_DEPTH:
            raise ValueError("the content is nested too deeply.")
        if isinstance(value, list):
            return [self.decode(v, depth + 1) for v in value]
        if not isinstance(value, dict):
            return value
        kind = value.get(_TAG)
        if kind is None:
            return {k: self.decode(v, depth + 1) for k, v in value.items()}
        read = getattr(self, f"_{kind}", None) if kind in _KINDS else None
        if read is None:
            raise ValueError(f"the content holds an unknown kind of value: {kind!r}.")
        return read(value, depth + 1)

    def _float(self, value: dict[str, Any], depth: int) -> float:
        if value["value"] not in ("inf", "-inf", "nan"):
            raise ValueError(f"{value['value']!r} is no float.")
        return float(value["value"])

    def _array(self, value: dict[str, Any], depth: int) -> NDArray[Any]:
        shape = tuple(int(n) for n in value["shape"])
        if value["dtype"] == "str":
            strings = np.array(list(map(str, value["items"])), np.str_).reshape(shape)
            longest = strings.dtype.itemsize // _CHARACTER
            width = value.get("width", longest)  # which early archives lack
            if not longest <= int(width) <= max(longest, _MOST_CHARACTERS):
                raise ValueError(
                    f"an array of strings has a width of {width} characters, for "
                    f"strings of up to {longest}."
                )
            return strings.astype(f"U{int(width)}")
        if value["dtype"] == "object":
            objects = np.empty(len(value["items"]), dtype=object)
            for i, item in enumerate(value["items"]):
                objects[i] = self.decode(item, depth)
            return objects.reshape(shape)
        dtype = np.dtype(value["dtype"])
        if dtype.kind not in "biuf":
            raise ValueError(f"an array has the dtype {dtype}.")
        bits = self._named(value).numpy()
        if bits.dtype != np.uint8:
            raise ValueError("the bytes of an array are not stored as bytes.")
        return bits.copy().view(dtype).reshape(shape)

    def _scalar(self, value: dict[str, Any], depth: int) -> Any:
        return self._array(value, depth)[()]

    def _tensor(self, value: dict[str, Any], depth: int) -> Tensor:
        return self._named(value).clone()

    def _named(self, value: dict[str, Any]) -> Tensor:
        if value["name"] not in self.tensors:
            raise ValueError(f"the tensor {value['name']!r} is missing.")
        return self.tensors[value["name"]]

    def _device(self, value: dict[str, Any], depth: int) -> torch.device:
        return torch.device(value["value"])

    def _dtype(self, value: dict[str, Any], depth: int) -> torch.dtype:
        dtype = getattr(torch, value["value"], None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{value['value']!r} is no dtype of torch.")
        return dtype

    def _tuple(self, value: dict[str, Any], depth: int) -> tuple[Any, ...]:
        return tuple(self.decode(v, depth) for v in value["items"])

    def _set(self, value: dict[str, Any], depth: int) -> set[Any]:
        return set(self._tuple(value, depth))

    def _frozenset(self, value: dict[str, Any], depth: int) -> frozenset[Any]:
        return frozenset(self._tuple(value, depth))

    def _dict(self, value: dict[str, Any], depth: int) -> dict[Any, Any]:
        return {self.decode(k, depth): self.decode(v, depth) for k, v in value["items"]}

    def _object(self, value: dict[str, Any], depth: int) -> Any:
        cls = _class_named(value["class"])
        if cls is None:
            raise ValueError(
                f"the content holds an object of the class {value['class']!r}, which "
                "this version of sk_calex does not know."
            )
        state = {k: self.decode(v, depth) for k, v in value["state"].items()}
        made: Any = object.__new__(cls)
        if hasattr(made, "_restore_archive"):
            made._restore_archive(state, self.backbone)
        elif hasattr(made, "__setstate__"):
            made.__setstate__(state)
        else:
            vars(made).update(state)
        return made

    def _frozen(self, value: dict[str, Any], depth: int) -> FrozenEstimator:
        return FrozenEstimator(self.decode(value["estimator"], depth))

    def _imported(self, value: dict[str, Any], depth: int) -> ImportedName:
        name = value["name"]
        if not self.trusted:
            raise ValueError(
                f"the content names code of its writer, {name!r}, which would be "
                "imported and run. If you trust who wrote the file, load it with "
                "trusted=True."
            )
        module, _, attribute = str(name).partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (AttributeError, ImportError) as error:
            raise ValueError(
                f"the content names {name!r}, which cannot be imported here ({error}). "
                "Put the file that defines it where Python finds it."
            ) from error
        return ImportedName(name, found)

    def _skops(self, value: dict[str, Any], depth: int) -> Any:
        file = value["file"]
        if file not in self.blobs:
            raise ValueError(f"the file {file!r} is missing.")
        skops = _skops(file, None)
        unknown = skops.get_untrusted_types(data=self.blobs[file])
        if unknown and not self.trusted:
            raise ValueError(
                f"{file} holds types that skops does not trust: {unknown}. If you "
                "trust who wrote the file, load it with trusted=True."
            )
        return skops.loads(self.blobs[file], trusted=unknown)


_KINDS = frozenset(
    {
        *("float", "array", "scalar", "tensor", "device", "dtype", "tuple", "set"),
        *("frozenset", "dict", "object", "frozen", "skops", "imported"),
    }
)


def _class_named(name: str) -> type | None:
    if name not in _CLASSES:
        for folder in _FOLDERS:
            importlib.import_module(f"sk_calex.{folder}")
    return _CLASSES.get(name)


def _state_of(value: Any) -> dict[str, Any]:
    if hasattr(value, "_archive_state"):
        state: dict[str, Any] = dict(value._archive_state())
    else:
        state = dict(value.__getstate__())
    for name in _NOT_SAVED:
        state.pop(name, None)
    return state


def _skops(where: str, value: Any) -> ModuleType:
    """Import skops, which writes estimators of scikit-learn without pickle."""
    if importlib.util.find_spec("skops") is None:
        what = where if value is None else f"{where} ({type(value).__name__})"
        raise ImportError(
            f"{what} is an estimator of scikit-learn, which is saved without pickle by "
            "skops. Install it: pip install 'sk-calex[save]'."
        )
    import skops.io

    module: ModuleType = skops.io
    return module
