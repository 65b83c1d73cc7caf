"""Whatever happens to a store, a read is right or a miss: checked against a dict."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import sys
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

from sk_calex.store import FeatureStore, StoreWarning, _eviction, _files, row_keys
from tests.store._helpers import MACHINE_RUNS, MACHINE_STEPS

N_KEYS = 8
WIDTH = 40
KEYS = row_keys(np.arange(N_KEYS))
FINGERPRINTS = ("aaaaaaaa", "bbbbbbbb")
ROWS = {  # fingerprints give the same samples different rows
    name: np.random.default_rng(seed).standard_normal((N_KEYS, WIDTH)).astype("f4")
    for seed, name in enumerate(FINGERPRINTS)
}

some_rows = st.lists(st.integers(0, N_KEYS - 1), min_size=1, max_size=6).map(np.array)
handles = st.sampled_from(["first", "second"])
fingerprints = st.sampled_from(FINGERPRINTS)


class Crash(BaseException):
    """The process is dead: nothing that it still does reaches the disk."""


class SystemCalls:
    """Ends in an error of ours before the nth system call on a folder's files."""

    NEED_SPACE = ("open", "os.mkdir", "os.rename", "fsync")
    OTHERS = (
        "os.remove",
        "os.rmdir",
        "os.utime",
        "os.scandir",
        "fcntl.flock",
        "mmap.__new__",
    )

    def __init__(self):
        self.folder = None  # nothing is watched
        sys.addaudithook(self.see)

    def see(self, event, arguments):
        if self.folder is None or event not in self.NEED_SPACE + self.OTHERS:
            return
        first = arguments[0] if arguments else None
        if isinstance(first, str | Path) and not str(first).startswith(self.folder):
            return
        if self.error is not Crash and (
            event not in self.NEED_SPACE
            or (event == "open" and not arguments[2] & os.O_CREAT)
        ):
            return
        self.left -= 1
        if self.left < 0 and (self.error is Crash or self.left == -1):
            # A new one each time: a traceback keeps what it has seen alive.
            raise self.error()

    @contextlib.contextmanager
    def failing(self, folder, error, after):
        self.folder, self.error, self.left = str(folder), error, after
        try:
            with contextlib.suppress(Crash):
                yield
        finally:
            self.folder = None


system_calls = SystemCalls()


def no_space():
    return OSError(errno.ENOSPC, "No space left on device")


def no_locks(*args):
    raise OSError(errno.ENOLCK, "No locks available")


class StoreMachine(RuleBasedStateMachine):
    """Two open stores on one folder, and a model of which shards are sound."""

    @initialize(verify=st.sampled_from(["first", "always"]))
    def start(self, verify):
        self.folder = Path(tempfile.mkdtemp())
        self.verify = verify
        self.held: dict[Path, set[int]] = {}  # shard -> the rows written to it
        self.sound: set[Path] = set()  # the shards that are as they were written
        self.stores = {}
        self.sections = {}  # those that the handles keep open
        self.told: set[str] = set()
        self.clock = itertools.count(1)
        for handle in ("first", "second"):
            self.reopen(handle)

    def teardown(self):
        if hasattr(self, "folder"):
            for handle, name in itertools.product(self.stores, FINGERPRINTS):
                self.gather(handle, name, np.array(sorted(self.stored(name)), int))
                self.read(handle, name, np.arange(N_KEYS))
            self.sections.clear()
            shutil.rmtree(self.folder)

    def call(self, function, *args, **kwargs):
        """Call; each damage may be told once by a process."""
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            result = function(*args, **kwargs)
        for warning in record:
            assert warning.category is StoreWarning
            message = str(warning.message)
            assert message not in self.told or "are gone" in message
            self.told.add(message)
        return result

    def section(self, handle, name):
        held = self.sections.get((handle, name))
        return held or self.call(self.stores[handle].section, name, WIDTH, "float32")

    def shards(self, name=None):
        return set(self.folder.glob(f"{name or '*'}/*.safetensors"))

    def stored(self, name):
        """The rows that must be found."""
        here = [path for path in self.sound if path.parent.name == name]
        return set().union(*(self.held[path] for path in here))

    @contextlib.contextmanager
    def shards_may_come(self):
        """Note in the model which shards an operation has written."""
        before = {path: path.stat().st_ino for path in self.shards()}
        try:
            yield
        finally:
            for path in self.shards():
                if before.get(path) != path.stat().st_ino:
                    content = path.read_bytes()
                    assert sha256(content).hexdigest() == path.stem
                    n = (len(content) - 1024) // (16 + 4 * WIDTH)
                    keys = np.frombuffer(content, "u1", 16 * n, 1024).reshape(n, 16)
                    same = (keys[:, None] == KEYS[None]).all(axis=2)
                    assert same.sum() == n
                    self.held[path] = set(same.nonzero()[1].tolist())
                    self.sound.add(path)

    def write(self, section, name, which):
        with self.shards_may_come():
            return self.call(section.write, KEYS[which], ROWS[name][which])

    def read(self, handle, name, which):
        section = self.section(handle, name)
        out = np.full((len(which), WIDTH), np.nan, dtype=np.float32)
        found = self.call(section.read, KEYS[which], out)
        np.testing.assert_array_equal(out[found], ROWS[name][which][found])
        assert set(which[found].tolist()) == self.stored(name) & set(which.tolist())
        return found

    def damaged(self, path):
        """Note in the model that a file has been tampered with."""
        self.sound.discard(path)
        self.told.clear()
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
        self.write(self.section(handle, name), name, which)
        # What writing saw to be stored has been verified.
        assert set(which.tolist()) <= self.stored(name)

    @rule(handle=handles, name=fingerprints, which=some_rows)
    def extract(self, handle, name, which):
        missing = which[~self.read(handle, name, which)]
        self.write(self.section(handle, name), name, missing)
        assert self.read(handle, name, which).all()

    @rule(handle=handles, name=fingerprints, which=some_rows)
    def gather(self, handle, name, which):
        section = self.section(handle, name)
        for limit in (0, 2**20):
            try:
                rows = self.call(section.gather, KEYS[which], memory_limit=limit)
            except KeyError:
                assert not set(which.tolist()) <= self.stored(name)
            else:
                np.testing.assert_array_equal(rows, ROWS[name][which])

    @rule(handle=handles)
    def reopen(self, handle):
        self.stores[handle] = FeatureStore(self.folder, verify=self.verify)
        for name in FINGERPRINTS:
            self.sections.pop((handle, name), None)

    @rule(handle=handles, name=fingerprints)
    def keep_open(self, handle, name):
        self.sections[handle, name] = self.section(handle, name)

    @rule(
        name=fingerprints,
        which=some_rows,
        max_bytes=st.integers(1, 9000),
        locks=st.booleans(),
    )
    def put_and_evict(self, name, which, max_bytes, locks):
        store = FeatureStore(self.folder, max_bytes=max_bytes, verify=self.verify)
        section = self.call(store.section, name, WIDTH, "float32")
        pinned = {name}
        for (_, held), reader in self.sections.items():
            pin = reader._folder.pin  # a folder made since is kept from the next use
            if pin is not None and pin.is_on(self.folder / held):
                pinned.add(held)
        with contextlib.ExitStack() as stack:
            if not locks:  # then open sections are evicted, too
                stack.enter_context(mock.patch("fcntl.flock", no_locks))
                stack.enter_context(mock.patch.object(_eviction, "_IDLE_SECONDS", -1))
                pinned = {name}
            wrote = self.write(section, name, which)
        evicted = {path.parent.name for path in self.sound - self.shards()}
        assert not evicted & pinned
        assert not any(self.shards(gone) for gone in evicted)
        self.sound &= self.shards()
        if wrote and sum(path.stat().st_size for path in self.shards()) > max_bytes:
            assert {path.parent.name for path in self.shards()} <= pinned
        assert set(which.tolist()) <= self.stored(name)

    @rule(
        name=fingerprints,
        which=some_rows,
        max_bytes=st.sampled_from([None, 3000]),
        error=st.sampled_from([Crash, no_space]),
        after=st.integers(0, 60),
        what=st.sampled_from(["write", "gather", "repair"]),
    )
    def crash(self, name, which, max_bytes, error, after, what):
        def work():
            store = FeatureStore(self.folder, max_bytes=max_bytes, verify=self.verify)
            section = store.section(name, WIDTH, "float32")
            if what == "write":
                section.write(KEYS[which], ROWS[name][which])
            elif what == "gather":
                section.gather(KEYS[which], memory_limit=0)
            else:
                store.repair()

        before = self.shards()
        with (
            self.shards_may_come(),
            contextlib.suppress(OSError, KeyError),
            warnings.catch_warnings(action="ignore", category=ResourceWarning),
            system_calls.failing(self.folder, error, after),
        ):
            self.call(work)  # the system, and not we, closes the files of the dead
        if what == "write" and max_bytes is not None:
            self.sound &= self.shards()
        assert self.sound <= self.shards()
        if what != "repair" and max_bytes is None:
            assert before <= self.shards()
        self.call(FeatureStore(self.folder).section, name, WIDTH, "float32")
        assert list((self.folder / name).glob(".*.tmp")) == []

    @rule(handle=handles)
    def repair(self, handle):
        damaged = self.shards() - self.sound
        report = self.stores[handle].verify()
        assert {p for p in report.damaged if p.name != "section.json"} == damaged
        assert report.shards == len(self.sound)
        removed = self.call(self.stores[handle].repair)
        assert {p for p in removed if p.suffix == ".safetensors"} == damaged
        assert self.stores[handle].verify().ok
        assert self.shards() == self.sound

    @precondition(lambda self: self.shards())
    @rule(
        data=st.data(),
        how=st.sampled_from(["flip", "truncate", "extend", "remove"]),
        part=st.sampled_from(["header", "keys", "rows"]),
        place=st.floats(0, 1, exclude_max=True),
    )
    def damage(self, data, how, part, place):
        path = data.draw(st.sampled_from(sorted(self.shards())))
        content = bytearray(path.read_bytes())
        n = (len(content) - 1024) // (16 + 4 * WIDTH)
        borders = {"header": (0, 1024), "keys": (1024, 1024 + 16 * n)}
        first, end = borders.get(part, (1024 + 16 * n, len(content)))
        at = min(len(content), first + int(place * max(0, end - first)))
        how = "extend" if how == "flip" and at == len(content) else how
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
    fsync = mock.Mock(side_effect=lambda descriptor: sys.audit("fsync"))
    with mock.patch.object(_files.os, "fsync", fsync):
        yield


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=MACHINE_RUNS,
    stateful_step_count=MACHINE_STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
