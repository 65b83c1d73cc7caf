"""Content digest of a module and its settings, under which features are stored."""

from __future__ import annotations

import copyreg
import functools
import hashlib
import os
import random
import sys
import types
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sk_calex.backbone._bytecode import changed_names, global_names, left_by_a_run
from sk_calex.utils._modes import BOOKKEEPING

__all__ = ["module_fingerprint"]

_NUMBERS = bool | int | float | complex | np.generic
_PLAIN = _NUMBERS | str | bytes | None
# Their code is known by their names and versions.
_INSTALLED = frozenset({"builtins", "torch", "numpy"}) | sys.stdlib_module_names
# What a class carries that does not change what an object of it does once it is there.
_CLASS_BOOKKEEPING = frozenset(
    f"__{name}__"
    for name in (
        *("abstractmethods", "annotate", "annotate_func", "annotations"),
        *("annotations_cache", "copy", "deepcopy", "dict", "doc", "firstlineno"),
        *("getstate", "init", "module", "new", "orig_bases", "parameters", "qualname"),
        *("reduce", "reduce_ex", "repr", "setstate", "slotnames"),
        *("static_attributes", "str", "weakref"),
    )
) | {"_abc_impl"}
_WRAPPED = {
    staticmethod: "__func__",
    classmethod: "__func__",
    property: "fget",
    functools.cached_property: "func",
    functools.singledispatchmethod: "func",
    functools._lru_cache_wrapper: "__wrapped__",
}

_FOLLOWED = (types.FunctionType, tuple, staticmethod, classmethod, property)
# What changes by itself, from run to run.
_BY_NAME = (
    *(np.random.Generator, np.random.RandomState, random.Random, torch.Generator),
    type(os.environ),
)


def module_fingerprint(module: nn.Module, **settings: Any) -> str:
    """Digest of all that decides a frozen module's features.

    Parameters
    ----------
    module : torch.nn.Module
        Counts by its class, that class's methods and attributes, its parameters and
        buffers to the last bit, its other attributes, and its children.
    **settings : object
        What else decides: taps, pooling, preprocessing, dtype, schema version. Data
        count by value, modules as above, functions by code, defaults and closure, other
        objects by the state that pickling would keep.

    Returns
    -------
    fingerprint : str
        64 hexadecimal digits (BLAKE2b-256).

    Raises
    ------
    TypeError
        If a part can be read in none of these ways.

    Notes
    -----
    Code is followed into the data and objects among the globals that it reads, and into
    functions and classes of the same file. Those of other files count by name, and so
    do globals and class attributes that cannot be read, such as locks, or that change
    by themselves: generators, and what the code itself fills, such as a memo. The code
    of torch, NumPy and the standard library does not count. Training flags, hooks and
    tensors that `forward` keeps and does not read are left out. Code is compared as
    bytecode, which differs between Python versions.

    Examples
    --------
    >>> from torch import nn
    >>> from sk_calex.backbone._fingerprint import module_fingerprint
    >>> module = nn.Linear(2, 2)
    >>> module_fingerprint(module, pool=8) == module_fingerprint(module, pool=8)
    True
    >>> module_fingerprint(module, pool=8) == module_fingerprint(module, pool=4)
    False
    """
    digest = _Digest()
    for name, value in [("module", module), *sorted(settings.items())]:
        try:
            digest.add(name)
            digest.add(value)
        except Exception as error:
            raise TypeError(
                f"{name} cannot be fingerprinted for the feature cache ("
                f"{type(error).__name__}: {error}). Use a module, a plain function or "
                "an object that can be pickled, or set cache=None."
            ) from error
    return digest.hexdigest()


class _Digest:
    """A walk over values that gives equal bytes to equal content, in any process.

    Every piece is written with its length, so that no two structures read the same.
    Objects met again are written as a number, which also ends cycles.
    """

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self._seen: dict[int, tuple[int, Any]] = {}
        self._unreadable: dict[int, Any] = {}

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def _write(self, kind: str, content: Any = b"") -> None:
        for part in (kind.encode(), content):
            view = memoryview(part).cast("B")
            self._hash.update(len(view).to_bytes(8, "little"))
            self._hash.update(view)

    def add(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._write(type(value).__qualname__, repr(value).encode())
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._write(f"array {value.dtype.str} {value.shape}", value.tobytes())
        elif isinstance(value, tuple | list):
            self._add_items(type(value).__qualname__, value)
        elif isinstance(value, set | frozenset):
            self._add_items("set", sorted(value, key=_rank))
        elif isinstance(value, dict):
            self._add_items("dict", sorted(value.items(), key=lambda kv: _rank(kv[0])))
        elif id(value) in self._seen:
            self._write("again", str(self._seen[id(value)][0]).encode())
        else:
            # The reference keeps the identity from being used again.
            self._seen[id(value)] = (len(self._seen), value)
            self._add_object(value)

    def _add_items(self, kind: str, items: Any) -> None:
        self._write(kind, str(len(items)).encode())
        for item in items:
            self.add(item)

    def _add_tensor(self, tensor: Tensor) -> None:
        plain = tensor.detach().resolve_conj().resolve_neg()
        flat = plain.cpu().contiguous().reshape(-1)
        kind = f"tensor {tensor.dtype} {tuple(tensor.shape)}"
        # As bytes: numpy has no bfloat16.
        self._write(kind, flat.view(torch.uint8).numpy() if len(flat) else b"")

    def _add_object(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            self._add_module(value)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, types.CodeType):
            self._add_code(value)
        elif isinstance(value, types.MethodType):
            self._add_items("method", (value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._add_items("partial", (value.func, value.args, value.keywords))
        elif isinstance(value, types.ModuleType):
            self._write("module", value.__name__.encode())
        elif type(value) in _WRAPPED:
            self._write(type(value).__name__)
            self.add(getattr(value, _WRAPPED[type(value)]))
        elif isinstance(value, weakref.ref):
            self._write("weakref")  # such as the LSTM's to its own weights
        else:
            self._add_state(value)

    def _add_module(self, module: nn.Module) -> None:
        self._write("nn.Module")
        self.add(type(module))
        # Parameters, buffers and children are taken on their own.
        own = {
            name: value
            for name, value in vars(module).items()
            if name not in BOOKKEEPING and not left_by_a_run(module, name, value)
        }
        if isinstance(module, torch.fx.GraphModule):
            own = {"code": module.code}
        self.add([own, dict(module._parameters), dict(module._buffers)])
        # Children in order: it is that of execution in an nn.Sequential.
        self._add_items("children", list(module._modules.items()))

    def _add_class(self, cls: type) -> None:
        self._write("class", f"{cls.__module__}.{cls.__qualname__}".encode())
        if cls.__module__.partition(".")[0] in _INSTALLED:
            return
        members = sorted(
            item for item in vars(cls).items() if item[0] not in _CLASS_BOOKKEEPING
        )
        changed = set[str]().union(
            *(changed_names(code) for _, member in members for code in _codes(member))
        )
        for name, member in members:
            self.add(name)
            followed = name == "__call__" or not name.startswith("__")
            if followed and isinstance(member, _FOLLOWED):
                self.add(member)
            elif name not in changed:
                self._add_if_readable(member)
        self._add_items("bases", cls.__bases__)

    def _add_if_readable(self, value: Any) -> None:
        """Add what code reads; of what cannot be read its name has to do."""
        before, n_seen = self._hash.copy(), len(self._seen)
        if not isinstance(value, _BY_NAME) and id(value) not in self._unreadable:
            try:
                self.add(value)
                return
            except RecursionError:
                raise  # how deep one may go differs from call to call
            except Exception:
                self._hash = before
                while len(self._seen) > n_seen:
                    self._seen.popitem()
                self._unreadable[id(value)] = value
        self._write("unreadable", type(value).__qualname__.encode())

    def _add_function(self, function: types.FunctionType) -> None:
        self._write(
            "function", f"{function.__module__}.{function.__qualname__}".encode()
        )
        # A function that was made by exec may have no module.
        if str(function.__module__).partition(".")[0] in sys.stdlib_module_names:
            return
        self.add([function.__defaults__, function.__kwdefaults__])
        for name, value in sorted(vars(function).items()):
            self.add(name)
            self._add_if_readable(value)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:
                self._write("empty cell")
        self.add(function.__code__)
        changed = changed_names(function.__code__)
        for name in sorted(global_names(function.__code__)):
            value = function.__globals__.get(name)
            self.add(name)
            same_file = getattr(value, "__module__", None) == function.__module__
            if isinstance(value, types.FunctionType | type) and not same_file:
                self._write(
                    "global", f"{value.__module__}.{value.__qualname__}".encode()
                )
            elif isinstance(value, types.FunctionType | type):
                self.add(value)
            elif name not in changed:
                self._add_if_readable(value)

    def _add_code(self, code: types.CodeType) -> None:
        self._write("code", code.co_code)
        self.add([code.co_names, code.co_consts])

    def _add_state(self, value: Any) -> None:
        """What pickling would keep, and the code that makes it callable."""
        kind = type(value)
        if isinstance(value, types.BuiltinFunctionType | np.ufunc):
            name = getattr(value, "__qualname__", value.__name__)
            self._write(
                "builtin", f"{getattr(value, '__module__', '')}.{name}".encode()
            )
            return
        reduce = copyreg.dispatch_table.get(kind)
        reduced = reduce(value) if reduce else value.__reduce_ex__(4)
        self.add(kind)
        if isinstance(reduced, str):
            self._write("global", reduced.encode())
            return
        maker, args, state, items, pairs = (*reduced, None, None, None)[:5]
        self.add([maker, args, state, list(items or ()), list(pairs or ())])


def _codes(member: Any) -> list[types.CodeType]:
    member = getattr(member, _WRAPPED.get(type(member), ""), member)
    return [member.__code__] if isinstance(member, types.FunctionType) else []


def _rank(value: Any) -> str:
    """What values are ordered by, in any process alike."""
    if isinstance(value, _PLAIN):
        return repr(value)
    digest = _Digest()
    digest.add(value)
    return digest.hexdigest()
