from __future__ import annotations

import os
import shutil

import pytest

from sk_calex.utils import _space
from sk_calex.utils._space import free_disk_space, free_memory


def test_free_memory_is_that_of_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(_space, "_MEMORY", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   5 kB\n")
    assert free_memory() == 5 * 1024


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="no sysconf")
def test_free_memory_elsewhere_is_that_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(_space, "_MEMORY", tmp_path / "absent")
    assert free_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def refuse(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", refuse)
    assert free_memory() is None


def test_free_disk_space_of_a_folder_to_be_made(tmp_path, monkeypatch):
    asked = []
    usage = shutil.disk_usage

    def seen(folder):
        asked.append(folder)
        return usage(folder)

    monkeypatch.setattr(shutil, "disk_usage", seen)
    assert free_disk_space(tmp_path / "not" / "there") > 0
    assert asked == [tmp_path]
