"""The data folder, and reads of files that may be hostile."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sk_calex.datasets import get_data_home
from sk_calex.datasets._base import check_split, read_indices, read_rgb


def test_data_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("SK_CALEX_DATA", raising=False)
    assert get_data_home() == tmp_path / ".cache" / "sk_calex"
    assert get_data_home("~/here") == tmp_path / "here"
    monkeypatch.setenv("SK_CALEX_DATA", "~/there")
    assert get_data_home() == tmp_path / "there"
    assert get_data_home(Path("here")) == Path("here")
    assert not list(tmp_path.iterdir())  # looking creates nothing


def test_split_names_come_in_the_official_order():
    known = ("train", "valid", "test")
    assert check_split("valid", known) == ("valid",)
    assert check_split(["test", "train"], known) == ("train", "test")


@pytest.mark.parametrize("split", ["val", "", (), ("test", "test"), ("train", "all")])
def test_unknown_split(split):
    with pytest.raises(ValueError, match=r"split must be one of \('train', 'test'\)"):
        check_split(split, ("train", "test"))


def _npz(path, **members):
    """Write raw npy streams: np.savez writes honest ones only."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def _npy(shape, dtype="<i8", content=b""):
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n"
    size = len(header).to_bytes(2, "little")
    return b"\x93NUMPY\x01\x00" + size + header.encode() + content


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i8"])
def test_indices_are_read(tmp_path, dtype):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.arange(5, dtype=dtype), b=np.array([7], "i8"))
    arrays = read_indices(path, {"a": 5, "b": 3})
    np.testing.assert_array_equal(arrays["a"], np.arange(5))
    np.testing.assert_array_equal(arrays["b"], [7])
    assert arrays["a"].dtype == np.int64


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_npy((6,), content=bytes(48)), r"found shape \(6,\)"),
        (_npy((10**15,)), "found shape"),  # reserves nothing
        (_npy((2, 2), content=bytes(32)), "found shape"),
        (_npy((-1,)), "found shape"),
        (_npy((2,), "<f8", bytes(16)), "dtype float64"),
        (_npy((2,), "|O", b"cos\nsystem\n(S'false'\ntR."), "dtype object"),
        (_npy((3,), content=bytes(16)), "found 16 bytes"),
        (_npy((1,), content=bytes(16)), "found 9 bytes"),
        (b"\x93NUMPY\x02\x00" + bytes(90), "format version"),
        (b"", "magic"),
    ],
)
def test_dishonest_arrays_are_refused(tmp_path, content, reason):
    path = _npz(tmp_path / "a.npz", a=content)
    with pytest.raises(ValueError, match=f"must be an npz file .*{reason}"):
        read_indices(path, {"a": 5})


def test_missing_array_and_missing_file(tmp_path):
    path = _npz(tmp_path / "a.npz", b=_npy((0,)))
    with pytest.raises(ValueError, match=r"a.npy"):
        read_indices(path, {"a": 5})
    with pytest.raises(FileNotFoundError):
        read_indices(tmp_path / "none.npz", {"a": 5})


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_indices_are_read_right_or_refused(tmp_path, data):
    path = tmp_path / "a.npz"
    truth = np.arange(100, 120)
    np.savez(path, a=truth)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[position:]
    path.write_bytes(content)
    try:
        array = read_indices(path, {"a": 20})["a"]
    except ValueError:
        return
    np.testing.assert_array_equal(array, truth)


def _png(size=(2, 3), mode="RGB", kind="PNG"):
    stream = io.BytesIO()
    Image.new(mode, size, 7).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_every_colour_mode_gives_three_channels(mode):
    pixels = read_rgb(io.BytesIO(_png(mode=mode)), name="x", kind="PNG", size=(2, 3))
    assert pixels.shape == (3, 2, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "content",
    [_png((3, 2)), _png(kind="JPEG"), b"", _png()[:40], b"\x89PNG" + bytes(50)],
    ids=["size", "kind", "empty", "cut", "garbage"],
)
def test_other_images_are_refused(content):
    with pytest.raises(ValueError, match=r"some.png must be a PNG image of 2x3 pixels"):
        read_rgb(io.BytesIO(content), name="some.png", kind="PNG", size=(2, 3))


def test_missing_image_keeps_its_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.png"):
        read_rgb(tmp_path / "none.png", name="x", kind="PNG", size=(2, 3))
