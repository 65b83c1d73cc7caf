"""Constraints that install the lowest versions follow from pyproject.toml."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "lowest_versions.py"


@pytest.fixture(scope="module")
def script():
    if not SCRIPT.exists():
        pytest.skip("an sdist has no scripts of the checks")
    spec = importlib.util.spec_from_file_location("lowest_versions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def project(*required):
    extras = {"plot": ["matplotlib>=3.10"], "docs": ["mkdocs"]}
    test = ["sk-calex[plot]", "pytest>=8.2"]
    return {
        "dependencies": list(required),
        "optional-dependencies": extras | {"test": test},
    }


def test_lowest_versions_are_the_bounds_of_each_requirement(script):
    given = project("torch>=2.6", "dask[array]>=2024.8", "scipy>=1.11.4,<2")
    assert script.lowest(given) == [
        *("torch==2.6", "dask==2024.8", "scipy==1.11.4"),
        *("matplotlib==3.10", "pytest==8.2"),
    ]


@pytest.mark.parametrize("text", ["torch", "torch<3", "torch==2.6"])
def test_requirements_without_a_lower_bound_are_refused(script, text):
    with pytest.raises(ValueError, match=f"'{text}' in pyproject.toml must be like"):
        script.lowest(project(text))


def test_each_requirement_of_the_project_has_a_lower_bound(script):
    path = SCRIPT.parents[1] / "pyproject.toml"
    lines = script.lowest(tomllib.loads(path.read_text())["project"])
    assert len(lines) > 15
    names = {line.partition("==")[0] for line in lines}
    assert names >= {"torch", "torchvision", "onnxruntime", "skops", "pandas"}
