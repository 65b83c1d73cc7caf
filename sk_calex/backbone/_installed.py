"""Tell code of installed packages from the user's own, and versions of it apart."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import sys
from typing import Any

__all__ = ["home_of", "installed_as"]

# Known by their names: a new version of them computes the same up to rounding.
_BY_NAME = frozenset({"builtins", "torch", "numpy", "sk_calex"})
_BY_NAME |= sys.stdlib_module_names


def home_of(function: Any) -> str:
    """Name the module of a function; functools.wraps changes ``__module__``."""
    return str(getattr(function, "__globals__", {}).get("__name__"))


def installed_as(module: str | None) -> str | None:
    """Return the content by which an installed module is known.

    Parameters
    ----------
    module : str or None
        Name of the module.

    Returns
    -------
    content : str or None
        "" for torch, NumPy, the standard library and this package, which are known by
        their names; else a digest of the package's files. None for code of the user's
        own.
    """
    package = str(module).partition(".")[0]
    return "" if package in _BY_NAME else _recorded(package)


@functools.cache
def _recorded(package: str) -> str | None:
    """Digest the hashes of a package's files, as its installer recorded them.

    None for code that is not installed, installed for editing, or without a record.
    """
    try:
        record = importlib.metadata.distribution(package).read_text("RECORD")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        if not hasattr(sys.modules.get(package), "__path__"):
            return None  # a script or a file beside it, as most modules of users are
        names = importlib.metadata.packages_distributions().get(package, [])
        if not names:
            return None
        record = importlib.metadata.distribution(names[0]).read_text("RECORD")
    lines = (record or "").splitlines()
    files = [x for x in lines if x.startswith(f"{package}/") and "sha256=" in x]
    text = "\n".join(sorted(files)).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest() if files else None
