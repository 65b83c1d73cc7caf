"""Whatever happens to a store, a read is right or a miss: checked against a dict."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
import warnings
from hashlib import sha256
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sk_calex.store import FeatureStore, StoreWarning, _files, row_keys

N_KEYS = 12
WIDTH = 5
KEYS = row_keys(np.arange(N_KEYS))
FINGERPRINTS = ("aaaaaaaa", "bbbbbbbb")
ROWS = {  # the two fingerprints give the same samples different rows
    name: np.random.default_rng(seed).standard_normal((N_KEYS, WIDTH)).astype("f4")
    for seed, name in enumerate(FINGERPRINTS)
}

some_rows = st.lists(st.integers(0, N_KEYS - 1), min_size=1, max_size=8).map(np.array)
handles = st.sampled_from(["first", "second"])
fingerprints = st.sampled_from(FINGERPRINTS)
FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


class StoreMachine(RuleBasedStateMachine):
    """Two open stores on one folder, and a model of which shards are sound."""

    @initialize(verify=st.sampled_from(["first", "always"]))
    def start(self, verify):
        self.folder = Path(tempfile.mkdtemp())
        self.verify = verify
        self.held: dict[Path, set[int]] = {}  # shard -> the rows written to it
        self.sound: set[Path] = set()  # the shards that are as they were written
        self.stores = {}
        self.warned: dict[str, set[str]] = {}
        self.clock = itertools.count(1)
        for handle in ("first", "second"):
            self.reopen(handle)

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def call(self, handle, function, *args):
        """Call; each damage may be told once by each open store."""
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            result = function(*args)
        for warning in record:
            assert warning.category is StoreWarning
            message = str(warning.message)
            assert message not in self.warned[handle]
            self.warned[handle].add(message)
        return result

    def section(self, handle, name):
        open_section = self.stores[handle].section
        return self.call(handle, open_section, name, WIDTH, "float32")

    def shards(self, name=None):
        return set(self.folder.glob(f"{name or '*'}/*.safetensors"))

    def stored(self, name):
        """The rows that must be found."""
        here = [path for path in self.sound if path.parent.name == name]
        return set().union(*(self.held[path] for path in here))

    def write(self, handle, name, which, **faults):
        """Write as an extraction does, and note what came of it in the model."""
        section = self.section(handle, name)
        before = {path: path.stat().st_ino for path in self.shards()}
        try:
            with contextlib.ExitStack() as stack:
                for function, fault in faults.items():
                    stack.enter_context(mock.patch.object(_files.os, function, fault))
                self.call(handle, section.write, KEYS[which], ROWS[name][which])
        finally:
            for path in self.shards():
                if before.get(path) != path.stat().st_ino:
                    with open(path, "rb") as file:
                        file.seek(1024)
                        n = (path.stat().st_size - 1024) // (16 + 4 * WIDTH)
                        keys = np.frombuffer(file.read(16 * n), "u1").reshape(n, 16)
                    same = (keys[:, None] == KEYS[None]).all(axis=2)
                    assert same.sum() == n
                    self.held[path] = set(same.nonzero()[1].tolist())
                    self.sound.add(path)

    def read(self, handle, name, which):
        section = self.section(handle, name)
        out = np.full((len(which), WIDTH), np.nan, dtype=np.float32)
        found = self.call(handle, section.read, KEYS[which], out)
        np.testing.assert_array_equal(out[found], ROWS[name][which][found])
        assert set(which[found].tolist()) == self.stored(name) & set(which.tolist())
        return found

    def damaged(self, path):
        """Note in the model that a file has been tampered with."""
        self.sound.discard(path)
        for told in self.warned.values():
            told.clear()
        if path.exists():
            # Another time of change, whatever the resolution of the system's clock.
            os.utime(path, ns=(0, next(self.clock)))
            if sha256(path.read_bytes()).hexdigest() == path.stem:
                self.sound.add(path)  # the same bit flipped twice

    @rule(handle=handles, name=fingerprints, which=some_rows)
    def get(self, handle, name, which):
        self.read(handle, name, which)

    @rule(handle=handles, name=fingerprints, which=some_rows)
    def put(self, handle, name, which):
        self.write(handle, name, which)

    @rule(handle=handles, name=fingerprints, which=some_rows)
    def extract(self, handle, name, which):
        missing = which[~self.read(handle, name, which)]
        self.write(handle, name, missing)
        assert self.read(handle, name, which).all()

    @rule(handle=handles, name=fingerprints, which=some_rows)
    def gather(self, handle, name, which):
        section = self.section(handle, name)
        for limit in (0, 2**20):
            try:
                rows = self.call(
                    handle, lambda n: section.gather(KEYS[which], memory_limit=n), limit
                )
            except KeyError:
                assert not set(which.tolist()) <= self.stored(name)
            else:
                np.testing.assert_array_equal(rows, ROWS[name][which])

    @rule(handle=handles)
    def reopen(self, handle):
        self.stores[handle] = FeatureStore(self.folder, verify=self.verify)
        self.warned[handle] = set()

    @rule(
        handle=handles,
        name=fingerprints,
        which=some_rows,
        call=st.sampled_from(["fsync", "replace"]),
        error=st.sampled_from([FULL_DISK, KeyboardInterrupt()]),
        nth=st.integers(0, 3),
        killed=st.booleans(),
    )
    def stop_writing(self, handle, name, which, call, error, nth, killed):
        countdown = itertools.count(-nth)
        original = getattr(os, call)

        def fail(*args):
            if next(countdown) == 0:
                raise error
            return original(*args)

        faults = {call: fail}
        if killed:  # then nobody tidies up
            faults["unlink"] = lambda path: None
        with contextlib.suppress(type(error)):
            self.write(handle, name, which, **faults)
        if killed:
            self.reopen(handle)
            self.section(handle, name)
        assert list((self.folder / name).glob(".*.tmp")) == []

    @precondition(lambda self: self.shards())
    @rule(
        data=st.data(),
        how=st.sampled_from(["flip", "truncate", "extend", "remove"]),
        place=st.floats(0, 1, exclude_max=True),
    )
    def damage(self, data, how, place):
        path = data.draw(st.sampled_from(sorted(self.shards())))
        content = bytearray(path.read_bytes())
        at = int(place * len(content))
        if how == "remove" or not content:
            path.unlink()
        else:
            if how == "flip":
                content[at] ^= data.draw(st.integers(1, 255))
            elif how == "truncate":
                del content[at:]
            else:
                content += bytes(1 + at)
            path.write_bytes(content)
        self.damaged(path)

    @rule(name=fingerprints, content=st.sampled_from([b"", b"{}", b'{"width": -1}']))
    def damage_metadata(self, name, content):
        path = self.folder / name / "section.json"
        if path.exists():
            path.write_bytes(content)
            self.damaged(path)

    @invariant()
    def counts_agree(self):
        if hasattr(self, "folder"):
            info = FeatureStore(self.folder).info()
            assert info["rows"] >= 0
            assert info["sections"] <= len(FINGERPRINTS)


@pytest.fixture(autouse=True, scope="module")
def spare_the_disk():
    # The pages of a written file outlive the process without it.
    with mock.patch.object(_files.os, "fsync"):
        yield


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
