"""Content digest of a module and its settings, under which features are stored."""

from __future__ import annotations

import abc
import copyreg
import functools
import hashlib
import inspect
import os
import random
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sk_calex.backbone._installed import home_of, installed_as
from sk_calex.utils._modes import BOOKKEEPING

__all__ = ["module_fingerprint", "settings_fingerprint"]

_PLAIN = bool | int | float | complex | np.generic | str | bytes | None
# Objects that hold no data, or whose data change from run to run: their class counts.
_BY_CLASS = (
    *(type(threading.Lock()), type(threading.RLock()), type(os.environ)),
    *(np.random.Generator, np.random.RandomState, random.Random, torch.Generator),
    *(weakref.ref, weakref.WeakKeyDictionary, weakref.WeakValueDictionary),
)

_T = TypeVar("_T")


class _Bare(abc.ABC, Generic[_T]):
    annotated: int


# Members that Python gives to classes, or that are done with once an object is made.
_NO_BEHAVIOUR = {*vars(_Bare), "__annotations_cache__", "__slotnames__"}
_NO_BEHAVIOUR |= {"__init__", "__new__"}
# Objects of a class that wrap functions, and where the functions are.
_WRAPPERS: dict[type, tuple[str, ...]] = {
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset"),
    functools.cached_property: ("func",),
    functools.singledispatchmethod: ("func", "dispatcher"),
    functools._lru_cache_wrapper: ("__wrapped__",),
    functools.partial: ("func", "args", "keywords"),
    types.MethodType: ("__func__", "__self__"),
}


def module_fingerprint(module: nn.Module, **settings: Any) -> str:
    """Compute a digest of all that decides a frozen module's features.

    Of a module count its class, attributes, parameters, buffers, forward hooks and
    children; of a class its methods and attributes; of a function its code, defaults
    and closure, and the data, functions and classes that its names stand for. Code of
    an installed package counts by name and by the hashes that its installer recorded.
    What cannot be read is refused or, among globals, found again by its process alone.

    Parameters
    ----------
    module : torch.nn.Module
        The frozen network; training flags and ``requires_grad`` do not count.
    **settings : object
        What else decides, by name: taps, pooling, preprocessing, dtype, schema version.
        Data count by value, other objects by the state that pickling would keep.

    Returns
    -------
    fingerprint : str
        64 hexadecimal digits (BLAKE2b-256).

    Raises
    ------
    TypeError
        If an attribute or a setting cannot be read, such as an open file.

    Notes
    -----
    Torch, NumPy and the standard library count by name alone. Locks, random generators
    and ``os.environ`` count by their class. A module that keeps its activations, and a
    function that fills a global memo, get a new fingerprint after each run: their rows
    are computed again. Code is compared as bytecode, which differs between Python
    versions. Not seen are data that an installed package keeps in its own modules.

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
    return _fingerprint(module=module, **dict(sorted(settings.items())))


def settings_fingerprint(**settings: Any) -> str:
    """Compute a digest of settings alone, as `module_fingerprint` does.

    Parameters
    ----------
    **settings : object
        Values by name.

    Returns
    -------
    fingerprint : str
        64 hexadecimal digits.

    Raises
    ------
    TypeError
        If a setting cannot be read.
    """
    return _fingerprint(**dict(sorted(settings.items())))


def _fingerprint(**values: Any) -> str:
    digest = _Digest()
    for name, value in values.items():
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

    Every piece is written with its length, so that no two structures read the same. An
    object has a digest of its own, taken once; inside itself it is written as a number.
    """

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        # By identity, which the references keep from being used again.
        self._known: dict[int, tuple[str, Any]] = {}
        self._open: list[int] = []
        self._unreadable: dict[int, tuple[Exception, Any]] = {}

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
        elif isinstance(value, dict | types.MappingProxyType):
            self._add_items("dict", sorted(value.items(), key=lambda kv: _rank(kv[0])))
        elif id(value) in self._open:
            up = self._open[::-1].index(id(value))
            self._write("cycle", str(up).encode())
        else:
            self._write("object", self._digest_of(value).encode())

    def _digest_of(self, value: Any) -> str:
        key = id(value)
        if key in self._unreadable:
            raise self._unreadable[key][0]  # tried once: objects may share many
        if key not in self._known:
            outer, self._hash = self._hash, hashlib.blake2b(digest_size=32)
            self._open.append(key)
            try:
                self._add_object(value)
                self._known[key] = (self.hexdigest(), value)
            except Exception as error:
                self._unreadable[key] = (error, value)
                raise
            finally:
                self._open.pop()
                self._hash = outer
        return self._known[key][0]

    def _add_named(self, name: str, value: Any) -> None:
        """Add what a name in code stands for, also where it cannot be read."""
        try:
            part = _Digest()
            part._known, part._open = self._known, self._open
            part._unreadable = self._unreadable
            part.add(value)
            content = part.hexdigest()
        except RecursionError:
            raise  # how deep one may go differs from call to call
        except Exception:
            content = _token_of(value)
        self.add([name, content])

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
            self._write("code", value.co_code)
            self.add([value.co_names, value.co_consts])
        elif isinstance(value, types.ModuleType):
            self._write("module", value.__name__.encode())
        elif isinstance(value, _BY_CLASS):
            self._write("by class", type(value).__qualname__.encode())
        elif type(value) in _WRAPPERS:
            parts = [getattr(value, name) for name in _WRAPPERS[type(value)]]
            self._add_items(type(value).__name__, parts)
        else:
            self._add_state(value)

    def _add_module(self, module: nn.Module) -> None:
        self._write("nn.Module")
        self.add(type(module))
        own = {k: v for k, v in vars(module).items() if k not in BOOKKEEPING}
        if isinstance(module, torch.fx.GraphModule):
            own = {"code": module.code}
        self.add([own, dict(module._parameters), dict(module._buffers)])
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            self._add_items("hooks", list(hooks.values()))
        # Children in order: it is that of execution in an nn.Sequential.
        self._add_items("children", list(module._modules.items()))

    def _add_class(self, cls: type) -> None:
        self._write("class", f"{cls.__module__}.{cls.__qualname__}".encode())
        installed = installed_as(cls.__module__)
        self.add(installed)
        for name, member in sorted(vars(cls).items()):
            if name in _NO_BEHAVIOUR:
                continue
            if installed is None:
                self._add_named(name, member)
            elif isinstance(member, types.FunctionType):
                # It may have been replaced, by a function of the user's or of another
                # package. What a package does to its own classes, as torch.compile
                # does to nn.Module, counts with its name and files.
                inside = inspect.unwrap(member)
                home = home_of(inside)
                if home.partition(".")[0] == cls.__module__.partition(".")[0]:
                    continue
                own = installed_as(home) is None
                self._add_named(name, member if own else inside.__qualname__)
        self._add_items("bases", cls.__bases__)

    def _add_function(self, function: types.FunctionType) -> None:
        module = home_of(function)
        self._write("function", f"{module}.{function.__qualname__}".encode())
        installed = installed_as(module)
        self.add(installed)
        closure = function.__closure__ or ()
        if installed == "" and not closure:
            return
        self.add([_contents(cell) for cell in closure])
        self.add([function.__defaults__, function.__kwdefaults__, vars(function)])
        if installed != "":
            self.add(function.__code__)
        if installed is None:
            for name, value in _named_by(function):
                self._add_named(name, value)

    def _add_state(self, value: Any) -> None:
        """Add what pickling would keep, and the class, which may make it callable."""
        kind = type(value)
        if isinstance(value, types.BuiltinFunctionType | np.ufunc):
            owner = getattr(value, "__module__", "")
            name = getattr(value, "__qualname__", value.__name__)
            self._write("builtin", f"{owner}.{name}".encode())
            return
        reduce = copyreg.dispatch_table.get(kind)
        reduced = reduce(value) if reduce else value.__reduce_ex__(4)
        self.add(kind)
        if isinstance(reduced, str):
            self._write("global", reduced.encode())
            return
        maker, args, state, items, pairs = (*reduced, None, None, None)[:5]
        self.add([maker, args, state, list(items or ()), list(pairs or ())])


def _named_by(function: types.FunctionType) -> list[tuple[str, Any]]:
    """Find what the names in a function's code stand for in its module.

    A name may also be an attribute: what it stands for is looked up in the user's own
    modules that the code names, too. Found too much is a row computed again.
    """
    names = sorted(set(_names_in(function.__code__)))
    spaces = [function.__globals__]
    for name in names:
        value = function.__globals__.get(name, sys.modules.get(name))
        if not isinstance(value, types.ModuleType):
            continue
        if installed_as(value.__name__) is None:
            spaces.append(vars(value))
    return [(name, space[name]) for space in spaces for name in names if name in space]


def _names_in(code: types.CodeType) -> Iterable[str]:
    """Give the names of globals and attributes in code, inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # empty: the name is not bound yet
        return []


_tokens: dict[int, tuple[str, Any]] = {}


def _token_of(value: Any) -> str:
    """Name an object that cannot be read: the same name for it alone, here alone."""
    return _tokens.setdefault(id(value), (uuid.uuid4().hex, value))[0]


def _rank(value: Any) -> str:
    """Give what values are ordered by, in any process alike."""
    if isinstance(value, _PLAIN):
        return repr(value)
    digest = _Digest()
    digest.add(value)
    return digest.hexdigest()
