"""Every public name can be imported and is documented, to the last parameter."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate

import sk_calex

PACKAGES = (
    "sk_calex",
    "sk_calex.baselines",
    "sk_calex.calibration",
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

# Names that compute nothing which a formula, and so its source, would have to explain.
NO_FORMULA = {
    "sk_calex.AlignmentDisplay",
    "sk_calex.CascadeDisplay",
    "sk_calex.CascadePrediction",
    "sk_calex.ExitDepthDisplay",
    "sk_calex.FeatureArray",
    "sk_calex.FrozenBackbone",
    "sk_calex.MonitorDisplay",
    "sk_calex.TapLayout",
    "sk_calex.ThresholdDisplay",
    "sk_calex.class_precision",
    "sk_calex.flops_reduction_scorer",
    "sk_calex.margin_curve",
    "sk_calex.operating_curve",
    "sk_calex.load",
    "sk_calex.show_versions",
    "sk_calex.datasets.get_data_home",
    "sk_calex.datasets.load_cinic10",
    "sk_calex.policies.first_exits",
    "sk_calex.calibration.StageAnswer",
    "sk_calex.calibration.StageTable",
    "sk_calex.calibration.class_precision",
}


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


def doc_of(obj: Any) -> NumpyDocString:
    return NumpyDocString(inspect.getdoc(obj) or "")


def without_shape(doc: NumpyDocString) -> list[str]:
    """Give the arrays in a docstring that do not tell their shape."""
    described = [*doc["Parameters"], *doc["Returns"], *doc["Attributes"]]
    array = re.compile(r"(^|[^(])\b(array|ndarray|array-like|tensor)\b(?! or )")
    return [
        part.name
        for part in described
        if array.match(part.type) and "shape" not in part.type
    ]


def raised_in(function: Callable[..., Any]) -> set[str]:
    """Give the errors in a function's own lines, and those of the shared checks."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = set()
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            continue
        name = call.func.id
        used = function.__globals__.get(name)  # type: ignore[attr-defined]
        if isinstance(node, ast.Raise):
            found.add(name)
        elif name[:6] == "check_" and used.__module__ == "sk_calex.utils._validation":
            found.add("ValueError")
    return found - {"NotImplementedError"}


def raised_by(obj: Any) -> set[str]:
    """Give the errors that a class raises where it is made, or a function raises."""
    if inspect.isclass(obj):
        makers = [vars(obj).get(name) for name in ("__init__", "__post_init__")]
        written = [m for m in makers if isinstance(m, FunctionType)]
        # That of a dataclass is made, not written.
        written = [m for m in written if m.__code__.co_filename != "<string>"]
        return set().union(*map(raised_in, written))
    obj = getattr(obj, "fget", None) or getattr(obj, "fn", obj)
    function = inspect.unwrap(getattr(obj, "__func__", obj))
    return raised_in(function) if isinstance(function, FunctionType) else set()


@pytest.mark.parametrize("path", [*public_names(), *public_methods()])
def test_shapes_and_errors_are_documented(path: str) -> None:
    package = next(p for p in sorted(PACKAGES, key=len)[::-1] if path.startswith(p))
    obj: Any = importlib.import_module(package)
    for name in path.removeprefix(f"{package}.").split("."):
        obj = getattr(obj, name)
    doc = doc_of(obj)
    assert not without_shape(doc)
    assert raised_by(obj) <= {part.type for part in doc["Raises"]}


@pytest.mark.parametrize("path", sorted(set(public_names()) - NO_FORMULA))
def test_formula_has_a_source(path: str) -> None:
    """Notes or References say whose the formula is; else it belongs in the list."""
    doc = doc_of(get(path))
    assert doc["Notes"] or doc["References"]


def test_list_of_names_without_formula_is_up_to_date() -> None:
    assert set(public_names()) >= NO_FORMULA
    needless = {p for p in NO_FORMULA if doc_of(get(p))["References"]}
    assert not needless


def test_the_checks_can_fail() -> None:
    """An undocumented function is found: numpydoc has not renamed its codes."""
    found = complaints(f"{__name__}.get", TOP_LEVEL)
    assert any("docstring" in text for text in found)
    doc = NumpyDocString(
        """Do it.

        Parameters
        ----------
        a : array-like, default=None
            Bad.
        b : ndarray of float64, shape (n,)
            Good.
        c : dict of arrays
            Not one.
        """
    )
    assert without_shape(doc) == ["a"]
    assert raised_by(sk_calex.effective_sample_size) == set()
    assert raised_by(sk_calex.survivor_weights) == {"ValueError"}
    assert raised_by(sk_calex.FeatureStore) == {"ValueError", "NotADirectoryError"}
