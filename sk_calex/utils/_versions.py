"""Versions of what computes, and what of the optional parts is there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys

__all__ = ["installed_parts", "show_versions"]

# Of each: the distribution, the module that has to import, and what it is for.
_NEEDED = (
    ("scikit-learn", "sklearn"),
    ("torch", "torch"),
    ("torchvision", "torchvision"),
    ("numpy", "numpy"),
    ("scipy", "scipy"),
    ("joblib", "joblib"),
    ("safetensors", "safetensors"),
    ("pillow", "PIL"),
    ("cloudpickle", "cloudpickle"),
    ("tqdm", "tqdm"),
    ("filelock", "filelock"),
)
_OPTIONAL = (
    ("matplotlib", "matplotlib", "displays"),
    ("pandas", "pandas", "results as data frames"),
    ("onnx", "onnx", "export to ONNX"),
    ("onnxruntime", "onnxruntime", "running what was exported"),
    ("skops", "skops", "estimators in a saved cascade"),
    ("pooch", "pooch", "downloads of data sets"),
    ("dask", "dask", "extraction on several machines"),
    ("distributed", "distributed", "extraction on several machines"),
    ("timm", "timm", "its models as backbones"),
    ("transformers", "transformers", "its models as backbones"),
)


def installed_parts() -> dict[str, dict[str, str]]:
    """Collect versions, optional parts and devices.

    Returns
    -------
    parts : dict of dict
        "system", "needed", "optional" and "devices", each from a name to a text.
        "not installed" stands for what is absent, and the error for what does not
        import.
    """
    needed = {name: _version(name, module) for name, module in _NEEDED}
    optional = {
        name: f"{_version(name, module)} ({purpose})"
        for name, module, purpose in _OPTIONAL
    }
    system = {
        "python": sys.version.replace("\n", " "),
        "executable": sys.executable,
        "machine": platform.platform(),
    }
    own = _version("sk-calex", "sk_calex")
    return {
        "system": system,
        "needed": {"sk_calex": own, **needed},
        "optional": optional,
        "devices": _devices(),
    }


def show_versions() -> None:
    """Print versions, optional parts and devices, to be pasted into a bug report.

    ``python -m sk_calex`` prints the same.

    Examples
    --------
    >>> import sk_calex
    >>> sk_calex.show_versions()  # doctest: +ELLIPSIS
    System:
    ...
    """
    titles = {
        "system": "System",
        "needed": "Needed packages",
        "optional": "Optional packages",
        "devices": "Devices that torch sees",
    }
    for part, lines in installed_parts().items():
        print(f"{titles[part]}:")
        width = max(map(len, lines))
        for name, text in lines.items():
            print(f"    {name:>{width}}: {text}")
        print()


def _version(distribution: str, module: str) -> str:
    """Give a version without importing, so that no broken package stops the rest."""
    if importlib.util.find_spec(module) is None:
        return "not installed"
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "installed without its metadata"


def _devices() -> dict[str, str]:
    """Describe the processor and the accelerators."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that does not load
        return {"cpu": f"torch does not import: {error}"}
    found = {"cpu": f"{torch.get_num_threads()} threads in torch"}
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        found[f"cuda:{i}"] = f"{torch.cuda.get_device_name(i)}, {memory:.0f} GiB"
    for i in range(torch.xpu.device_count()):
        found[f"xpu:{i}"] = torch.xpu.get_device_name(i)
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found
