"""Every public name can be imported and is documented, to the last parameter."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from types import FunctionType

import pytest
from numpydoc.validate import validate

PACKAGES = (
    "sk_calex",
    "sk_calex.baselines",
    "sk_calex.datasets",
    "sk_calex.policies",
)

# numpydoc's checks, by what a reader would miss.
EVERYWHERE = {
    "GL06": "unknown section",
    "GL07": "sections out of order",
    "GL08": "no docstring",
    "SS03": "summary without a full stop",
    "SS06": "summary longer than a line",
    "PR01": "parameter not documented",
    "PR02": "documented parameter that does not exist",
    "PR03": "parameters in another order than in the signature",
    "PR04": "parameter without type",
    "PR07": "parameter without description",
    "PR10": "no space before the colon of a parameter",
    "RT01": "no Returns section",
    "RT03": "return value without description",
    "YD01": "no Yields section",
}
TOP_LEVEL = {**EVERYWHERE, "EX01": "no Examples section"}
GIVEN = {code: text for code, text in TOP_LEVEL.items() if not code.startswith("PR")}


def public_names() -> list[str]:
    return [
        f"{package}.{name}"
        for package in PACKAGES
        for name in getattr(importlib.import_module(package), "__all__", ())
        if not name.startswith("__")
    ]


def get(path: str) -> object:
    package, _, name = path.rpartition(".")
    return getattr(importlib.import_module(package), name)


def public_methods() -> Iterator[str]:
    """Give the methods and properties that our own classes define or inherit.

    What comes from scikit-learn (get_params, set_fit_request, ...) is documented there.
    """
    for path in public_names():
        cls = get(path)
        if not inspect.isclass(cls):
            continue
        ours = [c for c in cls.__mro__ if c.__module__.startswith("sk_calex")]
        members = {name: m for c in reversed(ours) for name, m in vars(c).items()}
        for name, member in members.items():
            # available_if keeps the function that it guards in `fn`.
            kinds = (FunctionType, property, classmethod, staticmethod)
            known = isinstance(getattr(member, "fn", member), kinds)
            if known and not name.startswith("_"):
                yield f"{path}.{name}"


def own_signature(obj: object) -> bool:
    """Tell a class whose constructor is another library's (an ndarray, a Bunch)."""
    if not inspect.isclass(obj):
        return True
    ours = [c for c in obj.__mro__ if c.__module__.startswith("sk_calex")]
    return any({"__init__", "__new__"} & set(vars(c)) for c in ours)


def complaints(path: str, codes: dict[str, str]) -> list[str]:
    found = validate(path)
    return [f"{path}: {text}" for code, text in found["errors"] if code in codes]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there_and_listed_once(package: str) -> None:
    module = importlib.import_module(package)
    names = list(getattr(module, "__all__", ()))
    assert len(names) == len(set(names))
    assert all(hasattr(module, name) for name in names)


@pytest.mark.parametrize("path", public_names())
def test_public_name_is_documented(path: str) -> None:
    if not callable(get(path)):
        pytest.skip("a constant or a module")
    assert not complaints(path, TOP_LEVEL if own_signature(get(path)) else GIVEN)


@pytest.mark.parametrize("path", list(public_methods()))
def test_public_method_is_documented(path: str) -> None:
    assert not complaints(path, EVERYWHERE)


def test_the_checks_can_fail() -> None:
    """An undocumented function is found: numpydoc has not renamed its codes."""
    found = complaints(f"{__name__}.get", TOP_LEVEL)
    assert any("docstring" in text for text in found)
