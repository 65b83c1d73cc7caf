"""What the tests of the feature store share."""

from __future__ import annotations

import os
import traceback
import warnings

import numpy as np
import pytest

from sk_calex.store import FeatureStore, row_keys

FINGERPRINT = "0123456789abcdef"
WIDTH = 6

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def make_rows(n, seed=0, width=WIDTH):
    rng = np.random.default_rng(seed)
    keys = row_keys(np.arange(1000 * seed, 1000 * seed + n))
    return keys, rng.standard_normal((n, width)).astype(np.float32)


def read(section, keys, dtype=np.float32):
    out = np.full((len(keys), section._layout.width), -7, dtype=dtype)
    return section.read(keys, out), out


def open_section(folder, *, verify="first"):
    store = FeatureStore(folder, verify=verify)
    return store.section(FINGERPRINT, WIDTH, "float32")


def shards(folder):
    return sorted((folder / FINGERPRINT).glob("*.safetensors"))


def temporaries(folder):
    return sorted((folder / FINGERPRINT).glob(".*.tmp"))


def assert_right(section, keys, rows):
    """Each row is right or missing; return which were found."""
    found, out = read(section, keys)
    np.testing.assert_array_equal(out[found], rows[found])
    return found


def spare_the_disk(monkeypatch):
    """Skip fsync where at most the process dies: the written pages outlive it."""
    monkeypatch.setattr("sk_calex.store._files.os.fsync", lambda descriptor: None)


def assert_works_again(folder, keys, rows):
    """All rows can be written and read, and nothing but valid files is left."""
    section = open_section(folder)
    assert_right(section, keys, rows)
    section.write(keys, rows)
    assert assert_right(open_section(folder), keys, rows).all()
    assert temporaries(folder) == []


def fork(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads are idle
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
