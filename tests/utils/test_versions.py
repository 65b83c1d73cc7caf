"""What a bug report needs: versions, optional parts, devices."""

import importlib.metadata
import runpy
import sys

import pytest
import torch

import sk_calex
from sk_calex.utils._versions import installed_parts


def test_versions_are_those_of_the_packages():
    parts = installed_parts()
    assert parts["needed"]["torch"] == importlib.metadata.version("torch")
    assert parts["needed"]["sk_calex"] == sk_calex.__version__
    assert str(sys.version_info[1]) in parts["system"]["python"]
    assert parts["devices"]["cpu"] == f"{torch.get_num_threads()} threads in torch"


def test_every_dependency_is_reported():
    """What the package asks for in its metadata has a line."""
    asked = importlib.metadata.requires("sk-calex")
    names = {r.split(">")[0].split("=")[0] for r in asked if "extra ==" not in r}
    assert names <= set(installed_parts()["needed"])


def test_absent_packages_are_said_to_be_absent(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name)
    )
    assert installed_parts()["optional"]["onnx"] == "not installed (export to ONNX)"


def test_packages_without_metadata_are_reported(monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    assert installed_parts()["needed"]["numpy"] == "installed without its metadata"


def test_a_torch_that_does_not_import_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch does not import" in installed_parts()["devices"]["cpu"]


def test_accelerators_are_named(monkeypatch):
    class Properties:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "Some GPU")
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda i: "Another GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    devices = installed_parts()["devices"]
    assert devices["cuda:0"] == "Some GPU, 80 GiB"
    assert devices["xpu:0"] == "Another GPU"
    assert devices["mps"] == "Apple GPU"


@pytest.mark.parametrize("by", ["function", "module"])
def test_versions_are_printed(by, capsys):
    if by == "module":
        runpy.run_module("sk_calex", run_name="__main__")
    else:
        sk_calex.show_versions()
    printed = capsys.readouterr().out
    for title in ("System", "Needed packages", "Optional packages", "Devices"):
        assert f"{title}" in printed
    assert f"torch: {torch.__version__.split('+')[0]}" in printed
