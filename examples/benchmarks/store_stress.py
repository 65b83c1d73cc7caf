"""Processes that use, damage and mend one feature store while others are killed.

Each process takes random operations: it writes, reads, gathers, verifies, repairs,
evicts, changes a byte, cuts, removes or replaces a file, puts folders, links and files
where the store has its own, and renames a section as an interrupted repair of an
earlier version did. Before and after each system call on a file it sleeps for a random
time, so that the moments between two calls are long enough for the others. At random
moments one of the processes is killed, and another one starts.

What must hold: no row is wrong, no row of a section that nobody damages is lost, and
every error is one that the documentation names. After one repair in the end, nothing is
damaged, no temporary file and no hidden folder is left, and all rows can be written.

    python examples/benchmarks/store_stress.py
    python examples/benchmarks/store_stress.py --operations 1000 --record -
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import itertools
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import uuid
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from sk_calex.store import FeatureStore, StoreWarning, _shard_file, row_keys

WIDTH = 6
KEPT = "dddddddd"  # open in the parent and damaged by nobody: its rows must stay
NAMES = ("aaaaaaaa", "bbbbbbbb", "cccccccc")
N_ROWS = 40
ROWS = {
    name: (
        row_keys(np.arange(1000 * i, 1000 * i + N_ROWS)),
        np.random.default_rng(i).standard_normal((N_ROWS, WIDTH)).astype(np.float32),
    )
    for i, name in enumerate((*NAMES, KEPT))
}
DELAYED = (
    "open",
    "stat",
    "lstat",
    "fstat",
    "scandir",
    "mkdir",
    "rmdir",
    "replace",
    "rename",
    "unlink",
    "utime",
    "pread",
)


class WrongRows(Exception):
    """A row was read that is not the one that was written."""


class LostRows(Exception):
    """A row is missing that nobody damaged or evicted."""


def delay_system_calls(rng, seconds):
    """Let every system call on a file take a random time more."""

    def delayed(call):
        @functools.wraps(call)
        def slow(*args, **kwargs):
            for pause in (True, False):
                if rng.random() < 0.2:
                    time.sleep(rng.uniform(0, seconds))
                if pause:
                    result = call(*args, **kwargs)
            return result

        return slow

    for name in DELAYED:
        setattr(os, name, delayed(getattr(os, name)))
    _shard_file._pread = os.pread


def check(section, keys, right):
    out = np.empty((len(keys), WIDTH), dtype=np.float32)
    found = section.read(keys, out)
    if not np.array_equal(out[found], right[found]):
        raise WrongRows(repr(section))
    return found


class Worker:
    """One process: random operations on the store until it is killed."""

    def __init__(self, folder, seed):
        self.folder = folder
        self.rng = random.Random(seed)
        self.store = None

    def operations(self):
        """Yield the name of each operation, when it is done."""
        own = [self.write] * 4 + [self.read] * 4 + [self.read_kept] * 2
        own += (
            [self.gather, self.read_on_demand]
            + [self.evict] * 2
            + [self.verify, self.repair] * 2
        )
        damage = [self.flip] * 3 + [self.cut, self.remove, self.damage_metadata]
        damage += [self.put_folder, self.put_link, self.put_file, self.hide_section]
        for number in itertools.count():
            if number % 8 == 0:
                self.store = FeatureStore(self.folder)
            do = self.rng.choice(own if self.rng.random() < 0.85 else damage)
            self.name = self.rng.choice(NAMES)
            keys, right = ROWS[self.name]
            rows = np.array(self.rng.choices(range(N_ROWS), k=10))
            self.keys, self.right = keys[rows], right[rows]
            yield do()

    # What users do. An error that the documentation names is told by its name.

    def section(self, store=None):
        return (store or self.store).section(self.name, WIDTH, "float32")

    def write(self, store=None):
        try:
            section = self.section(store)
        except NotADirectoryError:
            return "open: NotADirectoryError"
        try:
            section.write(self.keys, self.right)
        except OSError as error:
            # Something that is not the store's lies in its way.
            if error.errno in (
                errno.EISDIR,
                errno.ENOTDIR,
                errno.EEXIST,
                errno.ENOTEMPTY,
            ):
                return f"write: {errno.errorcode[error.errno]}"
            raise
        check(section, self.keys, self.right)
        return "write"

    def evict(self):
        limit = self.rng.choice([3000, 8000])
        done = self.write(FeatureStore(self.folder, max_bytes=limit))
        return "write and evict" if done == "write" else done

    def read(self):
        try:
            section = self.section()
        except NotADirectoryError:
            return "open: NotADirectoryError"
        check(section, self.keys, self.right)
        return "read"

    def read_kept(self):
        keys, right = ROWS[KEPT]
        section = self.store.section(KEPT, WIDTH, "float32")
        if not check(section, keys, right).all():
            raise LostRows(KEPT)
        return "read of what stays"

    def gather(self):
        try:
            rows = self.section().gather(self.keys[:3], memory_limit=0)
        except NotADirectoryError:
            return "open: NotADirectoryError"
        except KeyError:
            return "gather: KeyError"
        if not np.array_equal(rows, self.right[:3]):
            raise WrongRows(self.name)
        return "gather"

    def read_on_demand(self):
        first = self.rng.randrange(WIDTH)
        columns = slice(first, self.rng.randint(first + 1, WIDTH))
        try:
            rows = self.section().on_demand(self.keys[:3]).read(columns)
        except NotADirectoryError:
            return "open: NotADirectoryError"
        except KeyError:
            return "read on demand: KeyError"
        except OSError as error:
            if error.errno is not None:  # else rows that went between the two calls
                raise
            return "read on demand: rows are gone"
        if not np.array_equal(rows, self.right[:3, columns]):
            raise WrongRows(self.name)
        return "read on demand"

    def verify(self):
        self.store.verify()
        return "verify"

    def repair(self):
        self.store.repair()
        return "repair"

    # What happens to files.

    def shard(self):
        paths = sorted((self.folder / self.name).glob("*.safetensors"))
        return self.rng.choice(paths) if paths else None

    def change(self, how):
        """Put a changed copy in the place of a shard."""
        with contextlib.suppress(OSError):
            if path := self.shard():
                content = bytearray(path.read_bytes())
                if content:
                    how(content)
                copy = self.folder.with_name(f"copy-{uuid.uuid4().hex}")
                copy.write_bytes(content)
                os.replace(copy, path)

    def flip(self):
        def one_bit(content):
            content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)

        self.change(one_bit)
        return "flip a bit"

    def cut(self):
        def end(content):
            del content[self.rng.randrange(len(content)) :]

        self.change(end)
        return "cut a shard"

    def remove(self):
        with contextlib.suppress(OSError):
            if path := self.shard():
                path.unlink()
        return "remove a shard"

    def damage_metadata(self):
        with contextlib.suppress(OSError):
            path = self.folder / self.name / "section.json"
            path.write_bytes(b"{" if path.exists() else b"")
        return "damage metadata"

    def put_folder(self):
        with contextlib.suppress(OSError):
            if path := self.rng.choice(
                [self.shard(), self.folder / self.name / "section.json"]
            ):
                path.unlink()
                path.mkdir()
                if self.rng.random() < 0.5:
                    (path / "notes.txt").write_text("mine")
        return "put a folder in the place of a file"

    def put_link(self):
        with contextlib.suppress(OSError):
            if path := self.shard():
                path.unlink()
                path.symlink_to("/dev/zero")
        return "put a link in the place of a file"

    def put_file(self):
        with contextlib.suppress(OSError), open(self.folder / self.name, "x"):
            pass
        return "put a file in the place of a section"

    def hide_section(self):
        with contextlib.suppress(OSError):
            place = self.folder / self.name
            hidden = self.folder / f".{'0' * 8}-{uuid.uuid4().hex}.tmp"
            hidden.mkdir()
            os.rename(place, hidden)  # of a folder only
        return "rename a section"


def work(folder, errors, seed, seconds, pipe):
    """Run in a process of its own until it is killed; one line for each operation."""
    warnings.simplefilter("ignore", StoreWarning)
    os.fsync = lambda descriptor: None  # pages outlive a process that is killed
    worker = Worker(folder, seed)
    delay_system_calls(random.Random(seed + 1), seconds)
    try:
        for done in worker.operations():
            os.write(pipe, f"{done}\n".encode())
    except BaseException as error:
        text = traceback.format_exc()
        line = json.dumps({"error": type(error).__name__, "traceback": text})
        with open(errors, "a") as file:
            file.write(f"{line}\n")
        os.write(pipe, b"an error\n")


class Crowd:
    """The worker processes and what they have done so far."""

    def __init__(self, folder, errors, args):
        self.folder, self.errors, self.args = folder, errors, args
        self.seeds = itertools.count(1000 * args.seed)
        self.children, self.pipes = [], {}
        self.done, self.n_killed = Counter(), 0
        self.rng = random.Random(args.seed)

    def start_one(self):
        reading, writing = os.pipe()
        seed = next(self.seeds)
        child = os.fork()
        if not child:
            try:
                os.close(reading)
                work(self.folder, self.errors, seed, self.args.delay / 1e3, writing)
            finally:
                os._exit(0)
        os.close(writing)
        self.children.append(child)
        self.pipes[reading] = b""

    def kill_one(self):
        child = self.children.pop(self.rng.randrange(len(self.children)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        # One that an error had ended before is none that was killed.
        self.n_killed += os.waitstatus_to_exitcode(status) == -signal.SIGKILL

    def listen(self, seconds):
        """Count what the processes have done in the meantime."""
        ready, _, _ = select.select(list(self.pipes), [], [], seconds)
        for pipe in ready:
            content = os.read(pipe, 2**16)
            *lines, rest = (self.pipes[pipe] + content).split(b"\n")
            self.done.update(line.decode() for line in lines)
            self.pipes[pipe] = rest
            if not content:
                os.close(pipe)
                del self.pipes[pipe]

    def run(self):
        for _ in range(self.args.processes):
            self.start_one()
        next_kill = time.monotonic()
        while self.done.total() < self.args.operations:
            self.listen(0.05)
            if time.monotonic() >= next_kill:
                self.kill_one()
                self.start_one()
                next_kill += self.rng.uniform(0, 2 * self.args.kill_every / 1e3)
        while self.children:
            self.kill_one()
        while self.pipes:
            self.listen(1)


def look_at_the_end(folder):
    """Repair once; count what is left that must not be."""
    store = FeatureStore(folder)
    store.repair()
    report = store.verify()
    everything = [p for p in folder.rglob("*") if "set-aside-" not in str(p)]
    locks = {".lock"} | {f".{name}.lock" for name in (*NAMES, KEPT)}
    hidden = [p for p in everything if p.name[0] == "." and p.name not in locks]
    for path in hidden:
        print("left:", path, file=sys.stderr)
    n_missing = 0
    for name, (keys, right) in ROWS.items():
        section = store.section(name, WIDTH, "float32")
        n_missing += int((name == KEPT) * (~check(section, keys, right)).sum())
        section.write(keys, right)
        n_missing += int((~check(section, keys, right)).sum())
    return {
        "damaged_files": len(report.damaged),
        "orphans": len(report.orphans),
        "hidden_folders": sum(path.is_dir() for path in hidden),
        "hidden_files": sum(not path.is_dir() for path in hidden),
        "rows_missing": n_missing,
    }


def stress(args):
    """Run the crowd and return what it did and what was found."""
    scratch = Path(tempfile.mkdtemp(dir=args.scratch))
    folder, errors = scratch / "store", scratch / "errors"
    errors.touch()
    keys, right = ROWS[KEPT]
    kept = FeatureStore(folder).section(KEPT, WIDTH, "float32")
    for part in np.array_split(np.arange(N_ROWS), 4):
        kept.write(keys[part], right[part])
    start = time.perf_counter()
    crowd = Crowd(folder, errors, args)
    crowd.run()
    lines = [json.loads(line) for line in errors.read_text().splitlines()]
    kinds = Counter(line["error"] for line in lines)
    for line in lines[:5]:
        print(line["traceback"], file=sys.stderr)
    with warnings.catch_warnings(action="ignore", category=StoreWarning):
        left = look_at_the_end(folder)
    del kept
    shutil.rmtree(scratch)
    found = {
        "wrong_rows": kinds.pop("WrongRows", 0),
        "lost_rows": kinds.pop("LostRows", 0),
        "undocumented_exceptions": kinds.total(),
        **left,
    }
    return {
        "settings": {
            "processes": args.processes,
            "delay_ms": args.delay,
            "kill_every_ms": args.kill_every,
            "seed": args.seed,
        },
        "seconds": time.perf_counter() - start,
        "operations": crowd.done.total(),
        "kills": crowd.n_killed,
        "by_operation": dict(sorted(crowd.done.items())),
        "exceptions": dict(kinds),
        "found": found,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=30_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--delay", type=float, default=1.0, help="ms, at most")
    parser.add_argument("--kill-every", type=float, default=200, help="milliseconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", help="folder for the store")
    parser.add_argument("--record", default="store_stress", help="name, or - to print")
    args = parser.parse_args()
    result = stress(args)
    if args.record == "-":
        print(json.dumps(result, indent=1))
    else:
        from _common import environment, write_json

        record = {"what": __doc__.splitlines()[0], "environment": environment()}
        print(write_json(args.record, record | result))
    if any(result["found"].values()):
        raise SystemExit(f"Found what must not be: {result['found']}")


if __name__ == "__main__":
    main()
