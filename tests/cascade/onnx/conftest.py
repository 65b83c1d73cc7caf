"""Exported folders that tests read, or copy before they change them."""

import shutil
from functools import cache

import pytest

from sk_calex import export_onnx
from tests.cascade.onnx._exported import fitted, skip_without_exporter


@pytest.fixture(scope="session", autouse=True)
def table_of_operations():
    """Build torch's table of ONNX operations once: it takes half of each export.

    The tests change nothing in it. A torch that has it elsewhere is only slower.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        built = staticmethod(cache(ONNXRegistry.from_torchlib))
        patch.setattr(ONNXRegistry, "from_torchlib", built)
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A cascade, and the folder that it was exported to."""
    skip_without_exporter()

    folder = tmp_path_factory.mktemp("onnx") / "exported"
    cascade = fitted()
    export_onnx(cascade, folder)
    return cascade, folder


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of the folder, to be changed."""
    return shutil.copytree(exported[1], tmp_path / "copied")
