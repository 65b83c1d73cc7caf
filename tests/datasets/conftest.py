"""Downloads without a network."""

from __future__ import annotations

import sys
from pathlib import Path

import pooch
import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, **options):
        raise AssertionError(f"a test tried to download {url}")

    monkeypatch.setattr(pooch, "retrieve", refuse)


@pytest.fixture
def serve(monkeypatch):
    """Let pooch answer with this content, or raise this error; return the calls."""

    def start(answer):
        calls = []

        def retrieve(url, *, known_hash, fname, path, progressbar):
            calls.append((url, known_hash, progressbar))
            if isinstance(answer, Exception):
                raise answer
            (Path(path) / fname).write_bytes(answer)

        monkeypatch.setattr(pooch, "retrieve", retrieve)
        return calls

    return start


@pytest.fixture
def without_pooch(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
