"""What the tests of the feature store share."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from sk_calex.store import FeatureStore, row_keys

FINGERPRINT = "0123456789abcdef"
WIDTH = 6
N_SHARDS, N_ROWS = 8, 10  # of `fill`, and rows of each

# How much is tried; docs/background/reliability.md says the same, as a test checks.
N_FLIPS = 200  # random places in which a byte of a shard is changed
N_KILLS = 200  # processes killed by the system at random moments
N_WRITERS = 8  # processes that write the same rows at once
N_CRAFTED = 83  # crafted files, folders, links and pipes
STRESS_OPERATIONS = 600  # of processes at once, with damage, delays and kills
STRESS_KILL_MS = 100  # between two kills, on average
MACHINE_RUNS = 100  # sequences of operations compared with a dict
MACHINE_STEPS = 30  # operations in each, at most

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a store, not there yet, and quick to write to."""
    spare_the_disk(monkeypatch)
    return tmp_path / "store"


def make_rows(n, seed=0, width=WIDTH):
    rng = np.random.default_rng(seed)
    keys = row_keys(np.arange(1000 * seed, 1000 * seed + n))
    return keys, rng.standard_normal((n, width)).astype(np.float32)


def read(section, keys, dtype=np.float32):
    out = np.full((len(keys), section._layout.width), -7, dtype=dtype)
    return section.read(keys, out), out


def open_section(folder, *, name=FINGERPRINT, **settings):
    return FeatureStore(folder, **settings).section(name, WIDTH, "float32")


def fill(folder, **settings):
    """Make a section of several shards, opened anew, and its keys and rows."""
    keys, rows = make_rows(N_SHARDS * N_ROWS)
    section = open_section(folder, **settings)
    for start in range(0, len(keys), N_ROWS):
        section.write(keys[start : start + N_ROWS], rows[start : start + N_ROWS])
    for path in shards(folder):
        os.utime(path, ns=(1, 1))  # later changes show, however coarse the clock
    section = None
    return open_section(folder, **settings), keys, rows


def held(section):
    """The shards that a section keeps open, by number."""
    return section._folder.shards._open._readers


def shards(folder, name=FINGERPRINT):
    return sorted((folder / name).glob("*.safetensors"))


def temporaries(folder):
    return sorted(folder.glob("*/.*.tmp"))


def overwrite(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def flip(path, offset, mask=1):
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def assert_right(section, keys, rows):
    """Each row is right or missing; return which were found."""
    found, out = read(section, keys)
    np.testing.assert_array_equal(out[found], rows[found])
    return found


def spare_the_disk(monkeypatch=None):
    """Skip fsync where at most the process dies: the written pages outlive it."""
    if monkeypatch is None:
        return mock.patch("sk_calex.store._files.os.fsync")
    monkeypatch.setattr("sk_calex.store._files.os.fsync", lambda descriptor: None)
    return None


def assert_works_again(folder, keys, rows):
    """All rows can be written and read, and nothing but valid files is left."""
    section = open_section(folder)
    assert_right(section, keys, rows)
    section.write(keys, rows)
    assert assert_right(open_section(folder), keys, rows).all()
    assert temporaries(folder) == []


# Tests that fork


def in_light_process(test):
    """Run a test in a process of its own, without torch, threads and worker pools.

    From there, forking takes a millisecond and disturbs nobody.
    """

    @functools.wraps(test)
    def run(**arguments):
        call = (test.__module__, test.__name__, arguments)
        script = Path(__file__).with_name("_light.py")
        subprocess.run(
            [sys.executable, "-W", "error", script],
            input=pickle.dumps(call),
            check=True,
            timeout=300,
        )

    return needs_fork(run)


def fork(function, *args):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        function(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
