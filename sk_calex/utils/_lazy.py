"""Public names that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    package: str, homes: Mapping[str, Collection[str]], folders: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package's ``__init__.py``.

    So a part of the package that needs no torch can be imported without it.

    Parameters
    ----------
    package : str
        The package, ``__name__`` in its ``__init__.py``.
    homes : mapping of str to collection of str
        Modules, relative to the package, and the public names that each defines.
    folders : collection of str
        Packages inside the package that can be reached as its attributes, beside those
        in `homes`.

    Returns
    -------
    get, names : callable
        What Python calls for a name that the package does not hold yet, and for
        ``dir(package)``.

    Examples
    --------
    >>> from sk_calex.utils._lazy import lazy_names
    >>> get, _ = lazy_names("sk_calex", {"utils._lazy": ["lazy_names"]})
    >>> get("lazy_names") is lazy_names
    True
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    packages = {*homes, *folders}

    def get(name: str) -> Any:
        if name in packages:
            return importlib.import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{home_of[name]}"), name)
        setattr(sys.modules[package], name, value)  # found without us from now on
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of, *packages})

    return get, names
