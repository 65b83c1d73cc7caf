"""Content digest of a module and its settings, under which features are stored."""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import types
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["module_fingerprint"]


def module_fingerprint(module: nn.Module, **settings: Any) -> str:
    """Digest of all that decides a frozen module's features.

    Parameters
    ----------
    module : torch.nn.Module
        The module: its architecture (``repr``), the bytes of its parameters and
        buffers, and its class count.
    **settings : object
        What else decides: taps, pooling, preprocessing, dtype, schema version. Numbers,
        strings, tuples and dicts count by value; modules by their own fingerprint;
        functions by their code, constants and bound values.

    Returns
    -------
    fingerprint : str
        64 hexadecimal digits (BLAKE2b-256).

    Raises
    ------
    TypeError
        If a setting can neither be read nor pickled.

    Notes
    -----
    A function is followed into its closure and its defaults, not into the globals it
    reads. Where those change, change the function's name.

    Examples
    --------
    >>> from torch import nn
    >>> from sk_calex.fingerprint import module_fingerprint
    >>> module = nn.Linear(2, 2)
    >>> module_fingerprint(module, pool=8) == module_fingerprint(module, pool=8)
    True
    >>> module_fingerprint(module, pool=8) == module_fingerprint(module, pool=4)
    False
    """
    digest = hashlib.blake2b(digest_size=32)
    _add_module(digest, module)
    for name in sorted(settings):
        digest.update(f"\0{name}=".encode())
        _add(digest, settings[name], name)
    return digest.hexdigest()


def _add_module(digest: Any, module: nn.Module) -> None:
    kind = type(module)
    digest.update(f"{kind.__module__}.{kind.__qualname__}\n{module!r}\n".encode())
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            digest.update(f"{name}:{tensor!r}".encode())
            continue
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        # Viewed as bytes: numpy has no bfloat16.
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy())


def _add(digest: Any, value: Any, name: str) -> None:
    digest.update(type(value).__qualname__.encode() + b":")
    if value is None or isinstance(value, bool | int | float | str | bytes):
        digest.update(repr(value).encode())
    elif isinstance(value, np.ndarray | torch.Tensor):
        array = np.ascontiguousarray(value)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    elif isinstance(value, tuple | list):
        for item in value:
            _add(digest, item, name)
            digest.update(b",")
    elif isinstance(value, dict):
        for key in sorted(value, key=repr):
            _add(digest, key, name)
            _add(digest, value[key], name)
    elif isinstance(value, nn.Module):
        _add_module(digest, value)
    elif isinstance(value, functools.partial):
        _add(digest, (value.func, value.args, value.keywords), name)
    elif isinstance(value, types.FunctionType):
        _add_function(digest, value, name)
    elif isinstance(value, types.MethodType):
        _add(digest, (value.__func__, value.__self__), name)
    else:
        try:
            state = pickle.dumps(value, protocol=4)
        except Exception as error:
            raise TypeError(
                f"{name}={value!r} cannot be fingerprinted for the feature cache "
                f"({error}). Use a module, a plain function or a picklable object, or "
                "set cache=None."
            ) from error
        digest.update(state)


def _add_function(digest: Any, function: types.FunctionType, name: str) -> None:
    code = function.__code__
    digest.update(json.dumps([function.__module__, function.__qualname__]).encode())
    _add_code(digest, code, name)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    _add(digest, cells, name)
    _add(digest, function.__defaults__, name)
    _add(digest, function.__kwdefaults__, name)


def _add_code(digest: Any, code: types.CodeType, name: str) -> None:
    digest.update(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _add_code(digest, constant, name)
        else:
            digest.update(repr(constant).encode())
