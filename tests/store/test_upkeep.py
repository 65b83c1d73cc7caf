"""Looking after a feature store: verify, repair, info, earlier versions."""

from __future__ import annotations

import base64
import errno
import os
import time
import zlib
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from sk_calex.store import FeatureStore, StoreReport, StoreWarning, _repair, row_keys
from sk_calex.store import _shard_file as _shard

from ._helpers import (
    FINGERPRINT,
    WIDTH,
    assert_right,
    flip,
    make_rows,
    open_section,
    shards,
    spare_the_disk,
)

KEYS, ROWS = make_rows(40)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    spare_the_disk(monkeypatch)
    return tmp_path / "store"


@pytest.fixture
def shard(folder):
    open_section(folder).write(KEYS, ROWS)
    (path,) = shards(folder)
    return path


def contents(folder):
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


# Verify and repair


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_verify_lists_sound_and_damaged_files(folder, n_jobs):
    section = open_section(folder)
    for part in np.array_split(np.arange(40), 8):
        section.write(KEYS[part], ROWS[part])
    del section
    open_section(folder, name="ffffffff").write(KEYS, ROWS)
    paths = shards(folder)
    flip(paths[0], 1100)
    flip(paths[1], 3)
    os.truncate(paths[2], 1100)
    orphan = folder / FINGERPRINT / f".{'0' * 8}-{'0' * 32}.tmp"
    orphan.write_bytes(b"")
    os.utime(orphan, (0, 0))
    before = contents(folder)
    report = FeatureStore(folder).verify(n_jobs=n_jobs)
    assert contents(folder) == before
    assert report == StoreReport(
        sections=2,
        shards=6,
        rows=25 + 40,
        bytes=6 * 1024 + 65 * (16 + 4 * WIDTH),
        damaged={
            paths[0]: "has bytes that do not give its digest",
            paths[1]: "has a header that does not fit its size and section",
            paths[2]: "has a size (1100 bytes) that no shard has",
        },
        orphans=[orphan],
    )
    assert not report.ok
    removed = FeatureStore(folder).repair(n_jobs=n_jobs)
    assert removed == {**report.damaged, orphan: "was left by a process that has ended"}
    after = contents(folder)
    assert after == {path: before[path] for path in before if path not in removed}
    assert FeatureStore(folder).verify().ok
    assert FeatureStore(folder).repair() == {}


@pytest.mark.filterwarnings("error")
def test_after_repair_rows_are_computed_without_a_warning(folder, shard):
    store = FeatureStore(folder)
    section = store.section(FINGERPRINT, WIDTH, "float32")
    flip(shard, 1500)
    assert list(store.repair()) == [shard]
    assert not section.find(KEYS).any()
    assert not assert_right(section, KEYS, ROWS).any()
    assert section.write(KEYS, ROWS) == 40
    assert assert_right(open_section(folder), KEYS, ROWS).all()


def test_missing_store_is_sound(folder):
    store = FeatureStore(folder)
    assert store.verify() == StoreReport(0, 0, 0, 0, {}, [])
    assert store.repair() == {}
    assert not folder.exists()


def test_damaged_metadata_loses_no_rows(folder, shard):
    path = shard.with_name("section.json")
    path.write_bytes(b"{}")
    report = FeatureStore(folder).verify()
    assert list(report.damaged) == [path]
    assert report.rows == 40
    assert list(FeatureStore(folder).repair()) == [path]
    assert not path.exists()
    assert FeatureStore(folder).verify().rows == 40
    section = open_section(folder)
    assert assert_right(section, KEYS, ROWS).all()
    section.write(*make_rows(1, seed=1))
    assert path.exists()


def test_metadata_removed_by_repair_is_written_again(folder, shard):
    section = open_section(folder)
    path = shard.with_name("section.json")
    path.write_bytes(b"{}")
    FeatureStore(folder).repair()
    section.write(*make_rows(1, seed=1))
    assert FeatureStore(folder).info()["rows"] == 41


def at_the_last_moment(monkeypatch, happen):
    """Let something happen between repair's look at the files and its removals."""
    verify = _repair.verify

    def verify_then(*args):
        report = verify(*args)
        happen()
        return report

    monkeypatch.setattr(_repair, "verify", verify_then)


def test_repair_keeps_a_sound_shard_written_meanwhile(folder, shard, monkeypatch):
    content = shard.read_bytes()
    flip(shard, 1500)
    at_the_last_moment(monkeypatch, lambda: shard.write_bytes(content))
    assert FeatureStore(folder).repair() == {}
    assert shard.read_bytes() == content
    assert list(shard.parent.glob(".*")) == []


@pytest.mark.parametrize("name", ["section.json", "ffffffff"])
def test_repair_keeps_metadata_and_folders_made_meanwhile(
    folder, shard, monkeypatch, name
):
    path = folder / name if name == "ffffffff" else shard.with_name(name)
    right = b"" if name == "ffffffff" else path.read_bytes()
    path.write_bytes(b"")

    def right_it():
        if name == "ffffffff":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(right)

    at_the_last_moment(monkeypatch, right_it)
    assert FeatureStore(folder).repair() == {}
    assert path.is_dir() if name == "ffffffff" else path.read_bytes() == right


def test_repair_ignores_files_removed_meanwhile(folder, shard, monkeypatch):
    flip(shard, 1500)
    at_the_last_moment(monkeypatch, shard.unlink)
    assert FeatureStore(folder).repair() == {}


def test_files_removed_during_verify_are_not_damaged(folder, shard, monkeypatch):
    check = _repair._check

    def evicted(path, place):
        if place.is_file():
            place.unlink()
        return check(path, place)

    monkeypatch.setattr(_repair, "_check", evicted)
    report = FeatureStore(folder).verify()
    assert report == StoreReport(1, 0, 0, 0, {}, [])


def test_read_error_of_a_disk_is_damage(folder, shard, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(_shard.ShardReader, "verify", fail)
    report = FeatureStore(folder).verify()
    assert report.damaged == {shard: "cannot be read: [Errno 5] Input/output error"}
    assert list(FeatureStore(folder).repair()) == [shard]


def test_repair_keeps_files_without_permission_to_read(folder, shard, monkeypatch):
    def fail(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(_shard.ShardReader, "verify", fail)
    for call in (FeatureStore(folder).verify, FeatureStore(folder).repair):
        with pytest.raises(PermissionError):
            call()
    assert shard.exists()


# Earlier versions


@pytest.fixture
def earlier(folder, shard, monkeypatch):
    """Two shards and metadata as version 1 wrote them."""
    layout = _shard.Layout(FINGERPRINT, WIDTH, "float32")
    shard.unlink()
    shard.with_name("section.json").write_bytes(layout.metadata(1))
    for part in (slice(20), slice(20, 40)):
        parts = (layout.header(20, 1), KEYS[part].tobytes(), ROWS[part].tobytes())
        content = b"".join(parts)
        name = f"{_shard.hashlib.sha256(content).hexdigest()}.safetensors"
        shard.with_name(name).write_bytes(content)
    return shards(folder)


def test_earlier_version_is_ignored_with_one_warning(folder, earlier):
    match = "2 shards of .* earlier version .* ignored: .*repair removes them"
    with pytest.warns(StoreWarning, match=match) as record:
        section = open_section(folder)
    assert len(record) == 1
    assert not section.find(KEYS).any()
    assert section.write(KEYS, ROWS) == 40
    section = open_section(folder)  # without a second message
    assert assert_right(section, KEYS, ROWS).all()
    assert section.n_rows == 40
    assert set(FeatureStore(folder).repair()) == set(earlier)
    assert FeatureStore(folder).verify().rows == 40


@pytest.mark.parametrize("has_metadata", [True, False])
def test_earlier_version_is_cleared_by_repair(folder, earlier, has_metadata):
    metadata = folder / FINGERPRINT / "section.json"
    expected = dict.fromkeys(earlier, "is of version 1 of the format, not 2")
    if has_metadata:
        expected[metadata] = expected[earlier[0]]
    else:
        metadata.unlink()
    assert FeatureStore(folder).verify().damaged == expected
    assert FeatureStore(folder).repair() == expected
    assert open_section(folder).write(KEYS, ROWS) == 40


# A section with three rows of two values, as the version before locks had files wrote
# it: compressed, in base 85.
WRITTEN_BEFORE = {
    "section.json": (
        "c-l3KTMmLS6b1iT1?jgjw3lA2n=$1+gor>&<0Hns3nYG?Gc%u}G&-"
        "ew%;sF0<#wSs$m_V|DTz6(@F8jGr*Wljo7#_8NptGQJ*cdM+GBGHu_YGWlV{Jl`v;ugvuvskQ_SF"
        "YW9g#vxV_eE0P8`yCa&~^0f9iJwN<Dk5PEj%SrEzAfJ_alrv}6_`wGYu-ye+#HlP"
    ),
    "987fe68c5034bbf65c39fd3aae78e29597171155127551e0b84ab5e06673e205.safetensors": (
        "c-s5H%m4<}O7ZczsU?Xii6x2g@k&+-)k<mkMY)M3K&Dc0c6@STPHKf-aY=qrs*;X^Qdw$Iab|uVN"
        "YV(zPs_|pPc14a%FF|6FfcSSHZe6bx3El1N=`{lQ>q23$xf{-"
        "1{<7GQdy7+QWk0f(p#L72<Ao`>nIqS#R5gZj>u0-D^4u|>4-"
        "MaQ82NH1({KlUyf#mo3RnPAx7BDFtN~4FgJ>=tyLHWqhJ(3f$rPe@AZ?rZU1_k@F$!!QYyW$`{AQ"
        "?PMsm1J!=-&Jmc{AXSm+OZ{Drg7q3sv+w^BLq_k+T2NDiI1jG$Myubkf+~CE<"
    ),
}


def test_store_written_before_is_read_and_written_alike(folder):
    keys, rows = row_keys(np.arange(3)), np.arange(6, dtype=np.float32).reshape(3, 2)
    place = folder / FINGERPRINT
    place.mkdir(parents=True)
    for name, content in WRITTEN_BEFORE.items():
        (place / name).write_bytes(zlib.decompress(base64.b85decode(content)))
    section = FeatureStore(folder).section(FINGERPRINT, 2, "float32")
    np.testing.assert_array_equal(section.gather(keys), rows)
    assert section.write(keys, rows) == 0
    assert FeatureStore(folder).verify().rows == 3
    # The same rows give the same files today.
    again = folder.with_name("again")
    FeatureStore(again).section(FINGERPRINT, 2, "float32").write(keys, rows)
    for name in WRITTEN_BEFORE:
        assert (again / FINGERPRINT / name).read_bytes() == (place / name).read_bytes()


# Info


def test_info_counts_rows_and_what_was_read(folder):
    store = FeatureStore(folder)
    section = store.section(FINGERPRINT, WIDTH, "float32")
    assert not section.find(KEYS).any()  # 40 missed
    section.write(KEYS[:30], ROWS[:30])
    section.find(KEYS)  # 10 missed
    section.gather(KEYS[:30], memory_limit=100)  # 30 read
    assert_right(section, KEYS, ROWS)  # 30 read, 10 missed
    other = store.section("ffffffff", 2, "float16")
    other.write(KEYS[:1], np.zeros((1, 2)))
    info = FeatureStore(folder).info()
    details = info.pop("by_section")
    last_used = [detail.pop("last_used") for detail in details.values()]
    size, other_size = 1024 + 30 * (16 + 4 * WIDTH), 1024 + 16 + 4
    assert info == {
        "rows": 31,
        "bytes": size + other_size,
        "sections": 2,
        "hits": 60,
        "misses": 60,
    }
    assert details == {
        FINGERPRINT: {
            "rows": 30,
            "bytes": size,
            "width": WIDTH,
            "dtype": "float32",
            "hits": 60,
            "misses": 60,
        },
        "ffffffff": {
            "rows": 1,
            "bytes": other_size,
            "width": 2,
            "dtype": "float16",
            "hits": 0,
            "misses": 0,
        },
    }
    for when in last_used:
        assert timedelta(0) <= datetime.now(UTC) - when < timedelta(minutes=10)


def test_info_has_the_time_of_last_use(folder, shard):
    when = time.time() - 1000
    os.utime(shard.with_name("section.json"), (when, when))
    info = FeatureStore(folder).info()["by_section"][FINGERPRINT]
    assert info["last_used"].timestamp() == pytest.approx(when, abs=1e-3)


def test_info_counts_the_bytes_of_damaged_shards_but_not_their_rows(folder, shard):
    os.truncate(shard, 1100)
    info = FeatureStore(folder).info()
    assert (info["rows"], info["bytes"], info["sections"]) == (0, 1100, 1)
