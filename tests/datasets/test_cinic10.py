"""CINIC-10 in its official layout, from small folders and archives made here."""

from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from sk_calex.datasets import _cinic10, load_cinic10

NAMES = "airplane automobile bird cat deer dog frog horse ship truck"  # as published
CLASSES = NAMES.split()
PARTS = ["train", "valid", "test"]


@pytest.fixture
def images(monkeypatch):
    """Three images a class and part, by path; some are grey, as in the original."""
    monkeypatch.setattr(_cinic10, "_PER_CLASS", 3)
    rng = np.random.default_rng(0)
    images = {}
    for part in PARTS:
        for name in CLASSES:
            for file in ("cifar10-train-9.png", "n02_1.png", "cifar10-train-10.png"):
                pixels = rng.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
                if file.startswith("n"):
                    pixels[:] = pixels[:, :, :1]
                images[f"{part}/{name}/{file}"] = pixels
    return images


def _png(path, pixels, size=None):
    mode = "L" if "n02" in path else "RGB"
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).resize(size or (32, 32)).save(stream, "PNG")
    return stream.getvalue()


def _write_folder(folder, images):
    for path, pixels in images.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(_png(path, pixels))
    (folder / "README.md").write_text("CINIC-10")
    (folder / PARTS[0] / "airplane" / "notes.txt").write_text("no image")


def _archive(files, prefix="./"):
    """An archive of these (path, bytes), in their order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for path, content in files:
            member = tarfile.TarInfo(prefix + path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _shuffled(images):
    paths = np.random.default_rng(1).permutation(list(images))
    files = [(str(path), _png(path, images[path])) for path in paths]
    decoys = ["../train/cat/x.png", "train/cow/x.png", "train/cat/a/x.png", "x.csv"]
    return [*files, *((path, b"decoy") for path in decoys)]


def _write_archive(home, content, monkeypatch):
    monkeypatch.setattr(_cinic10, "_MD5", hashlib.md5(content).hexdigest())
    (home / "CINIC-10.tar.gz").write_bytes(content)


@pytest.fixture(params=["folder", "data_home itself", "archive", "archive, prefixed"])
def home(request, tmp_path, images, monkeypatch):
    if request.param == "folder":
        _write_folder(tmp_path / "CINIC-10", images)
    elif request.param == "data_home itself":
        _write_folder(tmp_path, images)
    else:
        prefix = "CINIC-10/" if "prefixed" in request.param else "./"
        _write_archive(tmp_path, _archive(_shuffled(images), prefix), monkeypatch)
    return tmp_path


def test_every_layout_gives_the_images_in_one_order(home, images):
    cinic = load_cinic10(data_home=home, download_if_missing=False)
    assert cinic.data.shape == (90, 3, 32, 32)
    assert cinic.data.dtype == np.uint8
    assert cinic.data.flags.c_contiguous
    assert cinic.target.dtype == np.int64
    assert cinic.target_names.tolist() == CLASSES
    row = 0
    for part in PARTS:
        for label, name in enumerate(CLASSES):
            # Order of the names as strings: "10" comes before "9".
            for file in ("cifar10-train-10.png", "cifar10-train-9.png", "n02_1.png"):
                expected = images[f"{part}/{name}/{file}"].transpose(2, 0, 1)
                np.testing.assert_array_equal(cinic.data[row], expected)
                assert cinic.target[row] == label
                row += 1
    np.testing.assert_array_equal(cinic.train, np.arange(30))
    np.testing.assert_array_equal(cinic.val, np.arange(30, 60))
    np.testing.assert_array_equal(cinic.test, np.arange(60, 90))
    assert "arXiv:1810.03505" in cinic.DESCR


def test_some_parts(home):
    whole = load_cinic10(data_home=home)
    some = load_cinic10(data_home=home, split=("test", "train"))
    np.testing.assert_array_equal(some.data[some.train], whole.data[whole.train])
    np.testing.assert_array_equal(some.data[some.test], whole.data[whole.test])
    np.testing.assert_array_equal(some.target[some.test], whole.target[whole.test])
    assert len(some.data) == 60
    assert len(some.val) == 0


def test_progress_bar_only_on_request(tmp_path, images, capsys):
    _write_folder(tmp_path, images)
    load_cinic10(data_home=tmp_path, split="valid")
    assert capsys.readouterr().err == ""
    load_cinic10(data_home=tmp_path, split="valid", verbose=1)
    assert "30/30" in capsys.readouterr().err


def test_missing_data_names_the_paths_tried(tmp_path):
    with pytest.raises(OSError, match="Data not found") as caught:
        load_cinic10(data_home=tmp_path, split="test", download_if_missing=False)
    for path in ("CINIC-10/test", "test", "CINIC-10.tar.gz"):
        assert str(tmp_path / path) in str(caught.value)
    assert "https://doi.org/10.7488/ds/2448" in str(caught.value)


def test_download(tmp_path, images, monkeypatch, serve):
    content = _archive(_shuffled(images))
    monkeypatch.setattr(_cinic10, "_MD5", hashlib.md5(content).hexdigest())
    calls = serve(content)
    first = load_cinic10(data_home=tmp_path / "new")
    again = load_cinic10(data_home=tmp_path / "new", download_if_missing=False)
    np.testing.assert_array_equal(first.data, again.data)
    assert calls == [(_cinic10._URL, f"md5:{_cinic10._MD5}", True)]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["CINIC-10.tar.gz"]


def test_download_fails(tmp_path, serve):
    serve(ConnectionError("no route to host"))
    with pytest.raises(OSError, match=r"no route to host Or put .* by hand"):
        load_cinic10(data_home=tmp_path)


def test_download_needs_pooch(tmp_path, without_pooch):
    with pytest.raises(ImportError, match=r'pip install "sk-calex\[datasets\]"'):
        load_cinic10(data_home=tmp_path)


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="split must be one of"):
        load_cinic10(data_home=tmp_path, split="val")


def test_incomplete_folder(tmp_path, images):
    _write_folder(tmp_path, images)
    (tmp_path / "test" / "dog" / "n02_1.png").unlink()
    with pytest.raises(ValueError, match="test/dog holds 2 PNG files, expected 3"):
        load_cinic10(data_home=tmp_path)
    assert len(load_cinic10(data_home=tmp_path, split="train").data) == 30
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "dingo")
    with pytest.raises(FileNotFoundError, match="lacks the folder test/dog"):
        load_cinic10(data_home=tmp_path)


def test_folder_with_a_damaged_image(tmp_path, images):
    _write_folder(tmp_path, images)
    path = "valid/frog/n02_1.png"
    (tmp_path / path).write_bytes(_png(path, images[path], size=(32, 33)))
    with pytest.raises(ValueError, match=f"{path} must be a PNG image of 32x32"):
        load_cinic10(data_home=tmp_path)


def test_damaged_archive(tmp_path, images, monkeypatch):
    files = _shuffled(images)
    content = _archive(files)
    _write_archive(tmp_path, content, monkeypatch)
    (tmp_path / "CINIC-10.tar.gz").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"the official file has {_cinic10._MD5}"):
        load_cinic10(data_home=tmp_path)
    # The same image twice does not make up for a missing one.
    _write_archive(tmp_path, _archive([files[1], *files[1:]]), monkeypatch)
    with pytest.raises(ValueError, match="holds 2 PNG files, expected 3"):
        load_cinic10(data_home=tmp_path)
    huge = (files[0][0], bytes(70_000))
    _write_archive(tmp_path, _archive([huge, *files[1:]]), monkeypatch)
    with pytest.raises(ValueError, match="has 70000 bytes; expected at most 65536"):
        load_cinic10(data_home=tmp_path)
