"""The feature store with many processes and threads at once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import warnings
from unittest import mock

import numpy as np
import pytest

from sk_calex.store import FeatureStore, StoreWarning, _files, _folder

from ._helpers import (
    FINGERPRINT,
    N_WRITERS,
    WIDTH,
    assert_right,
    fork,
    in_light_process,
    make_rows,
    open_section,
    shards,
    spare_the_disk,
    temporaries,
    wait,
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def assert_like_one_writer(folder, keys, rows):
    section = open_section(folder)
    assert section.n_rows == len(keys)
    assert assert_right(section, keys, rows).all()
    np.testing.assert_array_equal(section.gather(keys), rows)
    assert temporaries(folder) == []


def write_all(section, keys, rows, seed):
    rng = np.random.default_rng(seed)
    for part in np.array_split(rng.permutation(len(keys)), 10):
        missing = part[~assert_right(section, keys[part], rows[part])]
        section.write(keys[missing], rows[missing])


@pytest.mark.parametrize("shared", [True, False])
def test_threads_write_at_once(folder, shared):
    keys, rows = make_rows(500)
    section = open_section(folder)
    errors = []

    def work(seed):
        try:
            mine = section if shared else open_section(folder)
            write_all(mine, keys, rows, seed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_like_one_writer(folder, keys, rows)
    if shared:  # a section's writers wait for each other: nothing is stored twice
        assert FeatureStore(folder).info()["rows"] == 500


def test_another_writer_makes_the_section_first(folder, monkeypatch):
    keys, rows = make_rows(40)
    section = open_section(folder)
    make_folder = _files.make_folder

    def late(path):
        if path.name == FINGERPRINT and not path.exists():
            monkeypatch.setattr(_files, "make_folder", make_folder)
            open_section(folder).write(keys[:30], rows[:30])
        make_folder(path)

    monkeypatch.setattr(_files, "make_folder", late)
    # The lock that the two wait for is not to be had within one thread.
    monkeypatch.setattr(_files, "_PATIENCE", 0)
    assert section.write(keys, rows) == 10
    assert_like_one_writer(folder, keys, rows)


def test_rescan_between_writing_and_indexing_adds_no_copy(folder, monkeypatch):
    keys, rows = make_rows(40)
    section = open_section(folder)
    write_shard = _folder.write_shard

    def seen(*args):
        name = write_shard(*args)
        section._folder.shards.rescan()
        return name

    monkeypatch.setattr(_folder, "write_shard", seen)
    assert section.write(keys, rows) == 40
    assert section.n_rows == 40


def at_once(*calls):
    """Run calls in a process each, which all start when the last one is ready."""
    ready, go = os.pipe(), os.pipe()

    def work(function, args):
        os.close(go[1])
        os.write(ready[1], b".")
        os.read(go[0], 1)  # ends when the parent closes its end
        function(*args)

    children = [fork(work, function, args) for function, *args in calls]
    for _ in calls:
        os.read(ready[0], 1)
    os.close(go[1])
    return [wait(child) for child in children]


@pytest.mark.parametrize("order", ["same", "shuffled"])
@pytest.mark.parametrize("locks", [True, False])
@in_light_process
def test_processes_write_at_once(tmp_path, order, locks):
    keys, rows = make_rows(500)

    def work(seed):
        if not locks:
            mock.patch("fcntl.flock", side_effect=OSError("No locks")).start()
        write_all(open_section(tmp_path), keys, rows, seed)

    same = order == "same"
    codes = at_once(*[(work, 0 if same else n) for n in range(N_WRITERS)])
    assert codes == [0] * N_WRITERS
    assert_like_one_writer(tmp_path, keys, rows)
    n_stored = FeatureStore(tmp_path).info()["rows"]
    # With locks each row is stored once, though all had it at the same time.
    assert n_stored == 500 if locks else 500 <= n_stored <= 500 * N_WRITERS


NAMES = ("aaaaaaaa", "bbbbbbbb", "cccccccc")


def do_anything(folder, rows, seed):
    """Write, read, gather, evict, damage and repair, in random order."""
    warnings.simplefilter("ignore", StoreWarning)
    rng = random.Random(seed)
    for _ in range(60):
        store = FeatureStore(folder, max_bytes=rng.choice([None, None, 3000, 10_000]))
        name = rng.choice(NAMES)
        keys, right = rows[name]
        part = np.array(rng.choices(range(len(keys)), k=10))
        do = rng.choice(["write", "read", "gather", "repair", "damage", "verify"])
        if do == "repair":
            store.repair()
        elif do == "verify":
            store.verify()
        elif do == "damage" and (paths := shards(folder, name)):
            with contextlib.suppress(FileNotFoundError):
                path = rng.choice(paths)
                content = bytearray(path.read_bytes())
                content[rng.randrange(len(content))] ^= 1
                damaged = folder / str(seed)
                damaged.write_bytes(content)
                os.replace(damaged, path)
        else:
            section = store.section(name, WIDTH, "float32")
            if do == "write":
                section.write(keys[part], right[part])
            assert_right(section, keys[part], right[part])
            if do == "gather":
                with contextlib.suppress(KeyError):
                    gathered = section.gather(keys[part], memory_limit=0)
                    np.testing.assert_array_equal(gathered, right[part])


@in_light_process
def test_processes_do_anything_at_once(tmp_path):
    rows = {name: make_rows(40, seed) for seed, name in enumerate(NAMES)}
    with spare_the_disk():
        codes = at_once(*[(do_anything, tmp_path, rows, n) for n in range(N_WRITERS)])
        assert codes == [0] * N_WRITERS
        store = FeatureStore(tmp_path)
        store.repair()
        assert store.verify().ok
        assert temporaries(tmp_path) == []
        for name in NAMES:
            section = store.section(name, WIDTH, "float32")
            section.write(*rows[name])
            assert assert_right(section, *rows[name]).all()


@in_light_process
def test_forked_child_does_not_remove_its_parents_map(tmp_path):
    keys, rows = make_rows(50)
    section = open_section(tmp_path)
    section.write(keys, rows)
    held = [section.gather(keys, memory_limit=0)]
    assert wait(fork(held.clear)) == 0
    assert len(temporaries(tmp_path)) == 1
    held.clear()
    assert temporaries(tmp_path) == []


@in_light_process
def test_map_of_a_killed_process_is_swept(tmp_path):
    keys, rows = make_rows(50)
    open_section(tmp_path).write(keys, rows)

    def gather_and_die():
        held = open_section(tmp_path).gather(keys, memory_limit=0)
        os.kill(os.getpid(), signal.SIGKILL * (len(held) == 50))

    assert wait(fork(gather_and_die)) == -signal.SIGKILL
    assert FeatureStore(tmp_path).verify().orphans == temporaries(tmp_path)
    assert len(temporaries(tmp_path)) == 1
    open_section(tmp_path)
    assert temporaries(tmp_path) == []
