"""Run one test of the store, as told on standard input, without importing torch."""

from __future__ import annotations

import importlib
import pickle
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    # The store is imported without the rest of its package.
    package = types.ModuleType("sk_calex")
    package.__path__ = [str(ROOT / "sk_calex")]
    sys.modules["sk_calex"] = package
    module, name, arguments = pickle.load(sys.stdin.buffer)
    getattr(importlib.import_module(module), name).__wrapped__(**arguments)
