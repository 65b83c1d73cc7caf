"""The feature store with files that somebody made to do harm."""

from __future__ import annotations

import json
import os
import pickle
import socket
import warnings
from hashlib import sha256

import pytest

from sk_calex.store import FeatureStore, StoreWarning
from sk_calex.store import _shard_file as _shard

from ._helpers import (
    FINGERPRINT,
    N_CRAFTED,
    WIDTH,
    assert_right,
    make_rows,
    open_section,
    shards,
    spare_the_disk,
)

N_ROWS = 10
KEYS, ROWS = make_rows(N_ROWS)
OTHER_KEYS, OTHER_ROWS = make_rows(N_ROWS, seed=1)
LAYOUT = _shard.Layout(FINGERPRINT, WIDTH, "float32")
HEADER = LAYOUT.header(N_ROWS)
DATA = OTHER_KEYS.tobytes() + OTHER_ROWS.tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    spare_the_disk(monkeypatch)
    open_section(tmp_path / "store").write(KEYS, ROWS)
    return tmp_path / "store"


def header(**changes):
    """A header of the right size in which the entries of a tensor are changed."""
    content = json.loads(HEADER[8:])
    for name, entry in changes.items():
        content[name] = {**content.get(name, {}), **entry}
    return HEADER[:8] + json.dumps(content).encode().ljust(1016)


def text(content):
    return HEADER[:8] + content.ljust(1016)


# Files whose name is the digest of their content: somebody who can write a file can
# also compute that.
SHARDS = {
    "empty": b"",
    "a header only": LAYOUT.header(0),
    "a header longer than the file": (2**40).to_bytes(8, "little") + HEADER[8:] + DATA,
    "a header of negative length": b"\xff" * 8 + HEADER[8:] + DATA,
    "a header of no length": bytes(8) + HEADER[8:] + DATA,
    "negative offsets": header(rows={"data_offsets": [-400, -160]}) + DATA,
    "offsets beyond the end": header(rows={"data_offsets": [160, 2**60]}) + DATA,
    "offsets that overlap": header(rows={"data_offsets": [0, 240]}) + DATA,
    "a negative shape": header(rows={"shape": [N_ROWS, -WIDTH]}) + DATA,
    "a huge shape": header(rows={"shape": [2**40, 2**40]}) + DATA,
    "another width": header(rows={"shape": [N_ROWS, 2 * WIDTH]}) + DATA,
    "another dtype": header(rows={"dtype": "F64"}) + DATA,
    "a dtype of the same size": header(rows={"dtype": "I32"}) + DATA,
    "no such dtype": header(rows={"dtype": {"O": ["O"]}}) + DATA,
    "keys of another dtype": header(keys={"dtype": "I8"}) + DATA,
    "one tensor more": header(more={"dtype": "U8", "shape": [0]}) + DATA,
    "another format": header(__metadata__={"format": "pickle"}) + DATA,
    "a later version": header(__metadata__={"version": "99"}) + DATA,
    "another section's": header(__metadata__={"fingerprint": "../../x"}) + DATA,
    "JSON too deep": text(b"[" * 1016) + DATA,
    "a number too long": text(b'{"rows": ' + b"9" * 1000 + b"}") + DATA,
    "no JSON": text(b"\xff\xfe") + DATA,
    "an array": text(b"[]") + DATA,
    "a pickle": pickle.dumps(os.getcwd),
    "twice the content": HEADER + DATA * 2,
}


def metadata(**changes):
    content = {
        "format": "sk_calex.store",
        "version": _shard._VERSION,
        "fingerprint": FINGERPRINT,
        "width": WIDTH,
        "dtype": "float32",
        **changes,
    }
    digest = sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1).encode()


METADATA = {
    "empty": b"",
    "cut short": metadata()[:-20],
    "half": b"{",
    "no JSON": b"\xff\xfe",
    "an array": b"[]",
    "null": b"null",
    "JSON too deep": b"[" * 4000,
    "a number too long": b'{"width": ' + b"9" * 4000 + b"}",
    "too long": b" " * 5000,
    "a gigabyte": 2**30,
    "followed by more": metadata() + b" ",
    "another folder's": metadata(fingerprint="../../../etc"),
    "a negative width": metadata(width=-6),
    "a huge width": metadata(width=2**62),
    "a broken width": metadata(width=6.5),
    "a float": metadata(width=6.0),
    "a boolean": metadata(width=True),
    "no width": metadata(width=None),
    "no such dtype": metadata(dtype="object"),
    "a list of dtypes": metadata(dtype=["float32"]),
    "a later version": metadata(version=99),
    "no version": metadata(version=True),
    "another format": metadata(format="pickle"),
    "more than there is": metadata(extra=1),
    "without its digest": metadata().replace(b'"width": 6', b'"width": 7'),
    "too little": b'{"format": "sk_calex.store", "version": 1}',
}


def make_folder(path):
    path.mkdir()
    (path / "mine").write_text("not the store's")


def link_to(target):
    return lambda path: path.symlink_to(target)


def make_socket(path):
    # A socket's path must be short: it is bound from within the folder.
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            server.bind("s")
        finally:
            os.chdir(here)
    os.rename(path.parent / "s", path)


NO_FILES = {
    "a folder": make_folder,
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": link_to("nothing"),
    "a link without end": link_to("/dev/zero"),
    "a link to a sound file": lambda path: path.symlink_to(
        next(path.parent.glob("[0-9a-f]*.safetensors"))
    ),
    "a link out of the store": link_to("../../outside"),
}


def assert_repaired(folder, path):
    """Verification finds the file, repair takes it away, and then all is well."""
    found = FeatureStore(folder).verify()
    assert list(found.damaged) == [path]
    assert not found.ok
    removed = FeatureStore(folder).repair()
    assert list(removed) == [path]
    assert removed[path].startswith(found.damaged[path])
    assert not os.path.lexists(path)
    assert FeatureStore(folder).verify().ok
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        section = open_section(folder)
        assert assert_right(section, KEYS, ROWS).all()
        assert section.write(OTHER_KEYS, OTHER_ROWS) == N_ROWS
    assert assert_right(open_section(folder), OTHER_KEYS, OTHER_ROWS).all()


def test_sound_shard_beside_crafted_ones_is_read(folder):
    content = HEADER + DATA
    path = folder / FINGERPRINT / f"{sha256(content).hexdigest()}.safetensors"
    path.write_bytes(content)
    assert assert_right(open_section(folder), OTHER_KEYS, OTHER_ROWS).all()
    assert header() == HEADER
    assert metadata() == LAYOUT.metadata()


@pytest.mark.parametrize("has_metadata", [True, False])
@pytest.mark.parametrize("name", SHARDS)
def test_crafted_shard_is_refused(folder, name, has_metadata):
    path = folder / FINGERPRINT / f"{sha256(SHARDS[name]).hexdigest()}.safetensors"
    path.write_bytes(SHARDS[name])
    with pytest.warns(StoreWarning, match=path.name) as record:
        section = open_section(folder)
    assert len(record) == 1
    assert assert_right(section, KEYS, ROWS).all()
    assert not section.find(OTHER_KEYS).any()
    if not has_metadata:
        (folder / FINGERPRINT / "section.json").unlink()
    assert_repaired(folder, path)


@pytest.mark.parametrize("n_rows", [2**20 + 1, 2**36])
def test_huge_hollow_shard_is_refused_before_it_is_read(folder, n_rows):
    path = folder / FINGERPRINT / f"{'0' * 64}.safetensors"
    path.write_bytes(LAYOUT.header(n_rows))
    os.truncate(path, LAYOUT.shard_bytes(n_rows))
    with pytest.warns(StoreWarning, match="that no shard has"):
        section = open_section(folder)
    assert assert_right(section, KEYS, ROWS).all()
    assert FeatureStore(folder).info()["rows"] == N_ROWS
    assert_repaired(folder, path)


@pytest.mark.parametrize("name", NO_FILES)
def test_shard_that_is_not_a_file_is_refused(folder, name):
    (folder.parent / "outside").write_text("not the store's")
    path = folder / FINGERPRINT / f"{'0' * 64}.safetensors"
    NO_FILES[name](path)
    section = open_section(folder)
    assert assert_right(section, KEYS, ROWS).all()
    assert section.n_rows == FeatureStore(folder).info()["rows"] == N_ROWS
    assert_repaired(folder, path)
    if name == "a folder":  # set aside with all that it holds
        (mine,) = folder.rglob("mine")
        assert mine.read_text() == "not the store's"
    assert (folder.parent / "outside").read_text() == "not the store's"


@pytest.mark.parametrize("name", NO_FILES)
def test_open_shard_replaced_by_something_else_is_a_miss(folder, name):
    section = open_section(folder)
    section.write(OTHER_KEYS[:1], OTHER_ROWS[:1])
    path = next(p for p in shards(folder) if p.stat().st_size > 1100)
    path.unlink()
    NO_FILES[name](path)
    with pytest.warns(StoreWarning, match="is not a regular file"):
        assert not assert_right(section, KEYS, ROWS).any()


@pytest.mark.parametrize("name", METADATA)
def test_crafted_metadata_is_refused(folder, name):
    path = folder / FINGERPRINT / "section.json"
    right, raw = path.read_bytes(), METADATA[name]
    path.write_bytes(b"" if isinstance(raw, int) else raw)
    if isinstance(raw, int):
        os.truncate(path, raw)
    assert FeatureStore(folder).info()["sections"] == 0
    with pytest.warns(StoreWarning, match="is not valid section metadata") as record:
        section = open_section(folder)
    assert len(record) == 1
    open_section(folder)  # without a second warning
    # The shards say themselves what they are.
    assert assert_right(section, KEYS, ROWS).all()
    assert_repaired(folder, path)
    # Without repair, the next write has the same effect.
    path.write_bytes(b"")
    section.write(*make_rows(1, seed=2))
    assert path.read_bytes() == right


@pytest.mark.parametrize("name", NO_FILES)
def test_metadata_that_is_not_a_file_is_refused(folder, name):
    path = folder / FINGERPRINT / "section.json"
    path.unlink()
    NO_FILES[name](path)
    with pytest.warns(StoreWarning, match="is not a regular file"):
        section = open_section(folder)
    assert assert_right(section, KEYS, ROWS).all()
    assert FeatureStore(folder).info()["sections"] == 0
    assert_repaired(folder, path)


@pytest.mark.parametrize(
    "name",
    [name for name in NO_FILES if name not in ("a folder", "a link to a sound file")],
)
def test_section_that_is_not_a_folder_is_refused(folder, name):
    path = folder / "ffffffff"
    NO_FILES[name](path)
    with pytest.raises(NotADirectoryError, match="but is a link or a file"):
        FeatureStore(folder).section("ffffffff", WIDTH, "float32")
    assert FeatureStore(folder).info()["sections"] == 1
    assert_repaired(folder, path)


def test_link_to_a_section_is_refused(folder):
    path = folder / "ffffffff"
    path.symlink_to(FINGERPRINT)
    with pytest.raises(NotADirectoryError, match="but is a link or a file"):
        FeatureStore(folder).section("ffffffff", WIDTH, "float32")
    assert FeatureStore(folder).info()["sections"] == 1
    assert_repaired(folder, path)


def test_files_with_other_names_are_left_alone(folder):
    place = folder / FINGERPRINT
    (sound,) = shards(folder)
    mine = ["notes.txt", sound.name + ".bak", sound.name + "\n", "A" * 64, ".x.tmp"]
    for name in [*mine, sound.name.upper(), f"x{sound.name}", f".{sound.name}"]:
        (place / name).write_bytes(HEADER + DATA)
    (folder / "notes.txt").write_text("mine")
    (folder / "0123abc").mkdir()  # too short
    names = set(os.listdir(place))
    assert open_section(folder).n_rows == N_ROWS
    assert FeatureStore(folder).repair() == {}
    assert set(os.listdir(place)) == names
    lock = f".{FINGERPRINT}.lock"
    assert set(os.listdir(folder)) == {FINGERPRINT, lock, "notes.txt", "0123abc"}


@pytest.mark.parametrize(
    "fingerprint", ["..", "../etc", "/etc/passwd", "0123abcd/..", "0123abcd\n", "."]
)
def test_fingerprint_that_is_a_path_is_refused(folder, fingerprint):
    with pytest.raises(ValueError, match="lower-case hexadecimal"):
        FeatureStore(folder).section(fingerprint, WIDTH, "float32")


def test_number_of_crafted_files_is_as_documented():
    assert len(SHARDS) + len(METADATA) + 4 * len(NO_FILES) == N_CRAFTED
