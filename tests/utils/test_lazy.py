"""The faces of the package import their names at first use, and name them once."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sk_calex
from sk_calex.utils._lazy import lazy_names

FACES = ("sk_calex", "sk_calex.cascade")


def run(code: str) -> str:
    """Run code in a process that has imported nothing of the package."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("package", FACES)
def test_names_for_type_checkers_are_those_at_run_time(package):
    """What `if TYPE_CHECKING` imports is `__all__`, and each name is found there."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(imported) == set(module.__all__)
    for name, home in imported.items():
        full = home if home.startswith("sk_calex") else f"{package}.{home}"
        assert getattr(module, name) is getattr(importlib.import_module(full), name)


@pytest.mark.parametrize("package", FACES)
def test_face_imports_no_torch_by_itself(package):
    code = f"import sys, {package}; print({{'torch', 'sklearn'}} & set(sys.modules))"
    assert run(code) == "set()"


def test_names_and_folders_are_there_after_one_import():
    assert set(dir(sk_calex)) >= {*sk_calex.__all__, "policies", "__name__"}
    code = (
        "from sk_calex import *; import sk_calex; print(sk_calex.policies.Quota(0.5))"
    )
    assert run(code) == "Quota(decay=0.5)"


def test_unknown_name_is_refused_as_by_any_module():
    get, _ = lazy_names("sk_calex", {"utils._lazy": ["lazy_names"]})
    with pytest.raises(AttributeError, match="module 'sk_calex' has no attribute 'x'"):
        get("x")
    assert not hasattr(sk_calex, "no_such_name")
