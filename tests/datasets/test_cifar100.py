"""CIFAR-100 in each of its layouts, from small files made here; and the real one."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from sk_calex.datasets import _cifar100, load_cifar100_coarse

N = {"train": 1_000, "test": 120}
REAL = Path(os.environ.get("SK_CALEX_DATA", "none"))


@pytest.fixture(scope="module")
def official():
    """Bytes of small files in the official binary layout: 3074 a record."""
    rng = np.random.default_rng(0)
    files = {}
    for part, n in N.items():
        records = rng.integers(0, 256, size=(n, 3074), dtype=np.uint8)
        records[:, 2:] &= 0x81  # noise takes long to compress without loss
        records[:, 1] = rng.permutation(np.arange(n) % 100)
        records[:, 0] = records[:, 1] // 5
        files[part] = records.tobytes()
    return files


def _publish(monkeypatch, official):
    """Make these bytes the published ones: sizes and checksums are still checked."""
    parts = {
        part: _cifar100._Part(len(content) // 3074, hashlib.sha256(content).hexdigest())
        for part, content in official.items()
    }
    monkeypatch.setattr(_cifar100, "_PARTS", parts)


@pytest.fixture
def published(monkeypatch, official):
    _publish(monkeypatch, official)
    monkeypatch.setattr(_cifar100, "_STRIP", 250)
    return official


def _archive(official, folder="cifar-100-binary/"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        directory = tarfile.TarInfo(folder)
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for part in reversed(official):
            member = tarfile.TarInfo(f"{folder}{part}.bin")
            member.size = len(official[part])
            archive.addfile(member, io.BytesIO(official[part]))
        member = tarfile.TarInfo("train.bin")  # a namesake elsewhere
        member.size = 3
        archive.addfile(member, io.BytesIO(b"no!"))
    return stream.getvalue()


def _write_archive(home, official, monkeypatch, **options):
    content = _archive(official, **options)
    monkeypatch.setattr(_cifar100, "_MD5", hashlib.md5(content).hexdigest())
    (home / "cifar-100-binary.tar.gz").write_bytes(content)


def _write_binary(home, official):
    folder = home / "cifar-100-binary"
    folder.mkdir()
    for part, content in official.items():
        (folder / f"{part}.bin").write_bytes(content)


def _write_strips(home, official, per_strip=250):
    folder = home / "cifar100"
    folder.mkdir()
    labels = {}
    for part, content in official.items():
        records = [content[i : i + 3074] for i in range(0, len(content), 3074)]
        labels[f"y_{part}_coarse"] = np.array([r[0] for r in records], np.uint8)
        labels[f"y_{part}_fine"] = np.array([r[1] for r in records], np.uint8)
        for start in range(0, len(records), per_strip):
            rows = records[start : start + per_strip]
            strip = Image.new("RGB", (32, 32 * len(rows)))
            for i, record in enumerate(rows):
                planes = [
                    Image.frombytes("L", (32, 32), record[at : at + 1024])
                    for at in (2, 1026, 2050)
                ]
                strip.paste(Image.merge("RGB", planes), (0, 32 * i))
            path = folder / f"{part}-{start // per_strip:03d}.webp"
            strip.save(path, lossless=True, quality=0, method=0)
    np.savez(folder / "labels.npz", **labels)
    return labels


@pytest.fixture(params=["strips", "binary", "archive"])
def home(request, tmp_path, published, monkeypatch):
    if request.param == "strips":
        _write_strips(tmp_path, published)
    elif request.param == "binary":
        _write_binary(tmp_path, published)
    else:
        _write_archive(tmp_path, published, monkeypatch)
    return tmp_path


def test_every_layout_gives_the_official_images(home, published):
    cifar = load_cifar100_coarse(data_home=home, download_if_missing=False)
    content = published["train"] + published["test"]
    assert cifar.data.shape == (1_120, 3, 32, 32)
    assert cifar.data.dtype == np.uint8
    assert cifar.data.flags.c_contiguous
    assert cifar.data.flags.writeable
    for row, channel, y, x in [(0, 0, 0, 0), (250, 1, 5, 31), (999, 2, 31, 0)]:
        at = 3074 * row + 2 + 1024 * channel + 32 * y + x
        assert cifar.data[row, channel, y, x] == content[at]
    records = np.frombuffer(content, np.uint8).reshape(-1, 3074)
    np.testing.assert_array_equal(cifar.data.reshape(-1, 3072), records[:, 2:])
    np.testing.assert_array_equal(cifar.target, records[:, 0])
    assert cifar.target.dtype == np.int64
    np.testing.assert_array_equal(cifar.test, np.arange(1_000, 1_120))
    assert "Krizhevsky" in cifar.DESCR


def test_one_part(home):
    both = load_cifar100_coarse(data_home=home)
    train = load_cifar100_coarse(data_home=home, split="train")
    test = load_cifar100_coarse(data_home=home, split=["test"])
    np.testing.assert_array_equal(train.data, both.data[:1_000])
    np.testing.assert_array_equal(test.data, both.data[both.test])
    np.testing.assert_array_equal(train.train, both.train)
    np.testing.assert_array_equal(train.val, both.val)
    np.testing.assert_array_equal(test.test, np.arange(120))
    assert len(train.test) == len(test.train) == len(test.val) == 0


def test_fine_classes(tmp_path, published):
    _write_binary(tmp_path, published)
    fine = load_cifar100_coarse(data_home=tmp_path, fine=True)
    coarse = load_cifar100_coarse(data_home=tmp_path)
    np.testing.assert_array_equal(fine.target // 5, coarse.target)
    assert fine.target_names.shape == (100,)
    assert coarse.target_names.shape == (20,)
    assert fine.target_names[[0, 99]].tolist() == ["apple", "worm"]
    assert coarse.target_names[[0, 19]].tolist() == ["aquatic_mammals", "vehicles_2"]


def test_drawn_split_is_stratified_over_fine_classes(tmp_path, published):
    _write_binary(tmp_path, published)
    cifar = load_cifar100_coarse(data_home=tmp_path, fine=True)
    assert set(np.bincount(cifar.target[cifar.val])) == {1}
    assert set(np.bincount(cifar.target[cifar.train])) == {9}
    rows = np.sort(np.concatenate([cifar.train, cifar.val]))
    np.testing.assert_array_equal(rows, np.arange(1_000))
    again = load_cifar100_coarse(data_home=tmp_path)
    np.testing.assert_array_equal(again.val, cifar.val)


def test_split_beside_the_backbones_is_used(tmp_path, published):
    _write_binary(tmp_path, published)
    (tmp_path / "backbones").mkdir()
    rows = np.random.default_rng(0).permutation(1_000).astype(np.int32)
    path = tmp_path / "backbones" / "split.npz"
    np.savez(path, train=rows[:700], val=rows[700:])
    cifar = load_cifar100_coarse(data_home=tmp_path)
    np.testing.assert_array_equal(cifar.train, rows[:700])
    np.testing.assert_array_equal(cifar.val, rows[700:])

    np.savez(path, train=rows[:700], val=rows[699:])
    with pytest.raises(ValueError, match=r"split.npz: train and val together"):
        load_cifar100_coarse(data_home=tmp_path)
    np.savez(path, train=rows[:700].astype(float), val=rows[700:])
    with pytest.raises(ValueError, match=r"split.npz must be an npz file"):
        load_cifar100_coarse(data_home=tmp_path)


def test_first_layout_wins(tmp_path, published):
    _write_strips(tmp_path, published)
    _write_binary(tmp_path, dict.fromkeys(published, b"broken"))
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"broken")
    assert len(load_cifar100_coarse(data_home=tmp_path).data) == 1_120


def test_data_home_from_the_environment(tmp_path, published, monkeypatch):
    _write_binary(tmp_path, published)
    monkeypatch.setenv("SK_CALEX_DATA", str(tmp_path))
    assert len(load_cifar100_coarse(split="test").data) == 120


def test_missing_data_names_the_paths_tried(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(OSError, match="Data not found") as caught:
        load_cifar100_coarse(data_home=tmp_path, download_if_missing=False)
    message = str(caught.value)
    for path in (
        "cifar100/labels.npz",
        "cifar-100-binary/train.bin",
        "cifar-100-binary/test.bin",
        "cifar-100-binary.tar.gz",
    ):
        assert str(tmp_path / path) in message
    assert "holds pickles and is never read" in message


def test_download(tmp_path, published, monkeypatch, serve):
    content = _archive(published)
    monkeypatch.setattr(_cifar100, "_MD5", hashlib.md5(content).hexdigest())
    calls = serve(content)
    home = tmp_path / "new" / "folder"
    first = load_cifar100_coarse(data_home=home)
    again = load_cifar100_coarse(data_home=home, download_if_missing=False)
    np.testing.assert_array_equal(first.data, again.data)
    assert calls == [(_cifar100._URL, f"md5:{_cifar100._MD5}", True)]


def test_download_fails(tmp_path, serve):
    serve(ValueError("MD5 hash of downloaded file does not match"))
    with pytest.raises(OSError, match=r"does not match Or put .* by hand"):
        load_cifar100_coarse(data_home=tmp_path)


def test_download_needs_pooch(tmp_path, without_pooch):
    with pytest.raises(ImportError, match=r'pip install "sk-calex\[datasets\]"'):
        load_cifar100_coarse(data_home=tmp_path)


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="split must be one of"):
        load_cifar100_coarse(data_home=tmp_path, split="valid")


def _damage(content, position, value):
    return content[:position] + bytes([value]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "has 3073999 bytes, expected 3074000"),
        (lambda b: b + b"\0", "has 3074001 bytes, expected 3074000"),
        (lambda b: _damage(b, 3074, 20), "between 0 and 19; found 0 to 20"),
        (lambda b: _damage(b, 3075, 100), "between 0 and 99; found 0 to 100"),
        (lambda b: _damage(b, 5000, b[5000] ^ 1), "differs from the published data"),
    ],
    ids=["short", "long", "coarse", "fine", "pixel"],
)
@pytest.mark.parametrize("layout", ["binary", "archive"])
def test_damaged_records(tmp_path, published, monkeypatch, layout, damage, message):
    broken = published | {"train": damage(published["train"])}
    if layout == "binary":
        _write_binary(tmp_path, broken)
    else:
        _write_archive(tmp_path, broken, monkeypatch)
    with pytest.raises(ValueError, match=message):
        load_cifar100_coarse(data_home=tmp_path)


def test_damaged_archive(tmp_path, published, monkeypatch):
    path = tmp_path / "cifar-100-binary.tar.gz"
    path.write_bytes(_archive(published)[:-5])
    with pytest.raises(ValueError, match=f"the official file has {_cifar100._MD5}"):
        load_cifar100_coarse(data_home=tmp_path)
    _write_archive(tmp_path, published, monkeypatch, folder="../cifar-100-binary/")
    with pytest.raises(ValueError, match=r"lacks \['train.bin', 'test.bin'\]"):
        load_cifar100_coarse(data_home=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_damaged_strips(tmp_path, published):
    labels = _write_strips(tmp_path, published)
    folder = tmp_path / "cifar100"
    strip = folder / "train-001.webp"
    whole = strip.read_bytes()

    strip.write_bytes((folder / "test-000.webp").read_bytes())
    with pytest.raises(ValueError, match=r"train-001.webp must be a WEBP image of 32x"):
        load_cifar100_coarse(data_home=tmp_path)
    strip.write_bytes((folder / "train-002.webp").read_bytes())
    with pytest.raises(ValueError, match="the train part differs from the published"):
        load_cifar100_coarse(data_home=tmp_path)
    strip.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-001.webp"):
        load_cifar100_coarse(data_home=tmp_path)
    assert len(load_cifar100_coarse(data_home=tmp_path, split="test").data) == 120
    strip.write_bytes(whole)

    coarse = labels["y_train_coarse"]
    for wrong, message in [
        (coarse[:-1], "must hold 1000 labels"),
        (coarse.astype(np.int16) + 256, "between 0 and 19"),
        (coarse.astype(np.int16) - 1, "between 0 and 19; found -1"),
        (np.append(coarse, 0), "must be an npz file"),
    ]:
        np.savez(folder / "labels.npz", **labels | {"y_train_coarse": wrong})
        with pytest.raises(ValueError, match=message):
            load_cifar100_coarse(data_home=tmp_path)


def test_address_is_the_official_folder():
    official = torchvision.datasets.CIFAR100.url
    assert _cifar100._URL.rpartition("/")[0] == official.rpartition("/")[0]


@pytest.mark.skipif(
    not (REAL / "cifar100" / "labels.npz").is_file(),
    reason="set SK_CALEX_DATA to a folder that holds cifar100/labels.npz and strips",
)
def test_the_real_data():
    # Loading compares both parts with the published checksums.
    cifar = load_cifar100_coarse(data_home=REAL, download_if_missing=False)
    assert cifar.data.shape == (60_000, 3, 32, 32)
    assert (len(cifar.train), len(cifar.val), len(cifar.test)) == (
        45_000,
        5_000,
        10_000,
    )
    assert set(np.bincount(cifar.target[cifar.test])) == {500}
    mean = cifar.data[:50_000].mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(mean, [0.50707516, 0.48654887, 0.44091784], atol=1e-8)
    fine = load_cifar100_coarse(data_home=REAL, fine=True, split="train")
    assert set(np.bincount(fine.target[fine.val])) == {50}
    with np.load(REAL / "cifar100" / "labels.npz", allow_pickle=False) as labels:
        assert fine.target_names.tolist() == labels["fine_names"].tolist()
        assert cifar.target_names.tolist() == labels["coarse_names"].tolist()
        groups = labels["fine_to_coarse"][fine.target]
    np.testing.assert_array_equal(groups, cifar.target[:50_000])
