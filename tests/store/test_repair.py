"""Repair beside repairs, writers and sweeps at any moment, and what it clears away."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

from sk_calex.store import FeatureStore, StoreWarning, _files, _repair

from ._helpers import (
    FINGERPRINT,
    STRESS_KILL_MS,
    STRESS_OPERATIONS,
    assert_right,
    flip,
    folder,
    fork,
    in_light_process,
    make_rows,
    needs_fork,
    open_section,
    shards,
    spare_the_disk,
    temporaries,
    wait,
)

__all__ = ["folder"]  # a fixture

KEYS, ROWS = make_rows(40)
CALLS = ("open", "lstat", "stat", "scandir", "mkdir", "rmdir", "replace", "rename")


def hidden_name():
    return f".{'0' * 8}-{uuid.uuid4().hex}.tmp"


def hide(place):
    """Rename the folder of a section, as a repair of an earlier version could."""
    hidden = place.with_name(hidden_name())
    place.rename(hidden)
    return hidden


def make_damaged_store(folder):
    """One section with all kinds of damage, a sound one, and leftovers in the root."""
    for part in np.array_split(np.arange(40), 4):
        open_section(folder).write(KEYS[part], ROWS[part])
    flipped, removed, linked, _ = shards(folder)
    flip(flipped, 1100)
    removed.unlink()
    removed.mkdir()
    (removed / "notes.txt").write_text("mine")
    linked.unlink()
    linked.symlink_to("/dev/zero")
    (folder / FINGERPRINT / "section.json").write_bytes(b"{}")
    (folder / "ffffffff").write_bytes(b"no folder")
    open_section(folder, name="aaaaaaaa").write(KEYS, ROWS)
    hide(folder / "aaaaaaaa")
    orphan = _files.new_temporary(folder)
    orphan.close()
    return folder


def assert_mended(folder, swept=True):
    """Nothing is damaged, hidden or lost, the notes included."""
    report = FeatureStore(folder).verify()
    assert report.ok
    if swept:
        assert report.orphans == []
        hidden = [path for path in folder.rglob(".*") if path.suffix != ".lock"]
        assert hidden == []
    section = open_section(folder, name="aaaaaaaa")
    assert assert_right(section, KEYS, ROWS).all()
    assert assert_right(open_section(folder), KEYS, ROWS).sum() >= 10
    (notes,) = folder.glob("set-aside-*/notes.txt")
    assert notes.read_text() == "mine"


def do_before_call(monkeypatch, number, action):
    """Do something before the given system call on files, and return what was done."""
    count, done = 0, []

    def watched(call):
        @functools.wraps(call)
        def first(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                done.append(call.__name__)
                action()
            return call(*args, **kwargs)

        return first

    for name in (*CALLS, "unlink"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    return done


OTHERS = {
    "repair": lambda folder: FeatureStore(folder).repair(),
    "sweep": lambda folder: [
        _files.sweep(path) for path in (folder, *folder.iterdir())
    ],
    "write": lambda folder: open_section(folder).write(KEYS, ROWS),
}


@pytest.mark.filterwarnings("ignore::sk_calex.store.StoreWarning")
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("locks", [True, False])
def test_repair_is_safe_with_others_before_any_system_call(
    tmp_path, monkeypatch, locks, other
):
    """They do not wait for the lock, as if its holder had been stopped."""
    spare_the_disk(monkeypatch)
    monkeypatch.setattr(_files, "_PATIENCE", 0)
    if not locks:

        def refuse(*args):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(_files.fcntl, "flock", refuse)
    seen = set()
    for number in range(1 + locks, 1000, 4):
        folder = make_damaged_store(tmp_path / str(number))
        with monkeypatch.context() as patch:
            act = functools.partial(OTHERS[other], folder)
            done = do_before_call(patch, number, act)
            FeatureStore(folder).repair()
        seen.update(done)
        if not done:
            break  # a repair makes fewer calls
        if other == "write":  # what was written is there, whatever the moment
            assert assert_right(open_section(folder), KEYS, ROWS).all()
        FeatureStore(folder).repair()  # of what came after the first one had passed
        assert_mended(folder, swept=locks)
    assert {"open", "lstat", "replace"} <= seen


@in_light_process
def test_repair_that_is_killed_before_any_system_call_loses_nothing(tmp_path):
    n_killed = 0
    for number in range(1, 1000, 3):
        with spare_the_disk(), pytest.MonkeyPatch.context() as patch:
            folder = make_damaged_store(tmp_path / str(number))

            def repair_and_die(folder=folder, number=number, patch=patch):
                do_before_call(
                    patch, number, lambda: os.kill(os.getpid(), signal.SIGKILL)
                )
                FeatureStore(folder).repair()

            code = wait(fork(repair_and_die))
            FeatureStore(folder).repair()
            assert_mended(folder)
        if code == 0:
            break  # a repair makes fewer calls
        assert code == -signal.SIGKILL
        n_killed += 1
    assert n_killed > 30


def test_file_is_locked_while_repair_checks_it(folder, monkeypatch):
    open_section(folder).write(KEYS, ROWS)
    (path,) = shards(folder)
    content = path.read_bytes()
    flip(path, 1100)
    is_sound = _repair._is_sound

    def swept_meanwhile(aside, place):
        assert _files.sweep(place.parent) == []
        assert aside.exists()
        return is_sound(aside, place)

    monkeypatch.setattr(_repair, "_is_sound", swept_meanwhile)
    assert list(FeatureStore(folder).repair()) == [path]
    # The same again, with a writer that does not wait and a sound file in the end.
    path.write_bytes(content)
    flip(path, 1100)
    remove = _repair._remove_unless_sound

    def mended_meanwhile(place):
        path.write_bytes(content)
        return remove(place)

    monkeypatch.setattr(_repair, "_remove_unless_sound", mended_meanwhile)
    assert FeatureStore(folder).repair() == {}
    assert path.read_bytes() == content


def test_file_that_repair_cannot_check_is_put_back(folder, monkeypatch):
    open_section(folder).write(KEYS, ROWS)
    (path,) = shards(folder)
    flip(path, 1100)
    content = path.read_bytes()

    def fail(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(_repair, "_is_sound", fail)
    with pytest.raises(PermissionError):
        FeatureStore(folder).repair()
    assert path.read_bytes() == content
    assert temporaries(folder) == []


def test_repair_without_permission_to_remove_raises(folder, monkeypatch):
    open_section(folder).write(KEYS, ROWS)
    (folder / "ffffffff").write_bytes(b"")

    def refuse(*args):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError):
        FeatureStore(folder).repair()


@pytest.mark.parametrize("is_there", [True, False])
def test_section_in_a_hidden_folder_is_brought_back(folder, is_there):
    for part in np.array_split(np.arange(40), 4):
        open_section(folder).write(KEYS[part], ROWS[part])
    hidden = hide(folder / FINGERPRINT)
    flip(hidden / shards(folder, hidden.name)[0].name, 1100)
    (hidden / "notes.txt").write_text("mine")
    if is_there:
        open_section(folder).write(*make_rows(5, seed=1))
    report = FeatureStore(folder).verify()
    assert report.orphans == [hidden]
    assert report.ok
    removed = FeatureStore(folder).repair()
    (note,) = folder.glob("set-aside-*/*")
    assert removed == {
        hidden: f"was renamed by an earlier version; it is a folder, now "
        f"{note.parent.name} in the store"
    }
    assert note.name == "notes.txt"
    assert not hidden.exists()
    section = open_section(folder)
    assert assert_right(section, KEYS, ROWS).sum() == 30
    assert FeatureStore(folder).info()["rows"] == 30 + 5 * is_there


def test_hidden_folder_waits_while_a_file_is_in_the_place_of_its_section(
    folder, monkeypatch
):
    open_section(folder).write(KEYS, ROWS)
    hidden = hide(folder / FINGERPRINT)
    make_folder = _files.make_folder

    def late(path):
        if not path.exists():
            path.write_bytes(b"")
        make_folder(path)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "make_folder", late)
        assert FeatureStore(folder).repair() == {}
    assert hidden.exists()
    assert list(FeatureStore(folder).repair()) == [folder / FINGERPRINT, hidden]
    assert assert_right(open_section(folder), KEYS, ROWS).all()


def test_gather_from_a_section_renamed_meanwhile_raises(folder, monkeypatch):
    open_section(folder).write(KEYS, ROWS)
    section = open_section(folder)
    new_temporary = _files.new_temporary

    def renamed_meanwhile(path):
        hide(path)
        return new_temporary(path)

    monkeypatch.setattr("sk_calex.store._section.new_temporary", renamed_meanwhile)
    with (
        pytest.warns(StoreWarning, match="are gone"),
        pytest.raises(KeyError, match="40 of 40 rows"),
    ):
        section.gather(KEYS, memory_limit=0)
    FeatureStore(folder).repair()
    monkeypatch.undo()
    np.testing.assert_array_equal(section.gather(KEYS, memory_limit=0), ROWS)


def test_leftovers_in_the_root_are_swept(folder):
    open_section(folder).write(KEYS, ROWS)
    live = _files.new_temporary(folder)
    dead = _files.new_temporary(folder)
    dead.close()
    link = folder / hidden_name()
    link.symlink_to("/dev/zero")
    assert set(FeatureStore(folder).verify().orphans) == {Path(dead.name), link}
    assert set(FeatureStore(folder).repair()) == {Path(dead.name), link}
    assert Path(live.name).exists()
    live.close()


def test_lock_files_of_sections_that_are_gone_are_removed(folder):
    open_section(folder).write(KEYS, ROWS)
    gone, in_use = folder / ".aaaaaaaa.lock", folder / ".bbbbbbbb.lock"
    gone.touch()
    held = _files.lock(in_use)
    FeatureStore(folder).repair()
    locks = {path.name for path in folder.glob(".*")}
    assert locks == {f".{FINGERPRINT}.lock", in_use.name}
    held.release()


def test_hosts_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(_files.socket, "gethostname", lambda: "localhost")
    digests = set()
    for start in ("one", "other"):
        monkeypatch.setattr(_files, "_BOOT_ID", tmp_path / start)
        (tmp_path / start).write_text(start)
        digests.add(_files._host_digest())
        assert _files._host_digest() in digests
    monkeypatch.setattr(_files, "_BOOT_ID", tmp_path / "absent")
    for address in (2**40 - 1, 2**40 - 2):
        monkeypatch.setattr(_files.uuid, "getnode", lambda address=address: address)
        digests.add(_files._host_digest())
    assert len(digests) == 4
    # Without a network card the number is drawn anew in each process.
    drawn = set()
    for address in (2**40, 2**40 + 1):
        monkeypatch.setattr(_files.uuid, "getnode", lambda address=address: address)
        drawn.add(_files._host_digest())
    assert len(drawn) == 1


# The stress script, with a delay at each system call and kills

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "store_stress.py"


@needs_fork
def test_stress_with_damage_delays_and_kills_leaves_a_sound_store(tmp_path):
    command = [sys.executable, SCRIPT, "--scratch", tmp_path, "--record", "-"]
    settings = {"--operations": STRESS_OPERATIONS, "--kill-every": STRESS_KILL_MS}
    command += [str(part) for pair in settings.items() for part in pair]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(run.stdout)
    assert result["operations"] >= STRESS_OPERATIONS
    assert result["kills"] > 0
    assert set(result["found"].values()) == {0}
    for what in ("write", "read", "gather", "verify", "repair", "write and evict"):
        assert result["by_operation"][what] > 0
    assert list(tmp_path.iterdir()) == []
