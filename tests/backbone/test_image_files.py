"""Image files as samples: what is read, how often, under which key, what is refused."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from sk_calex import CascadeClassifier, FrozenBackbone
from sk_calex.backbone import _image_files
from sk_calex.backbone._prepare import prepare
from sk_calex.backbone._samples import Samples
from sk_calex.store import FeatureStore
from tests._cascade_models import images, small_branch, tiny_backbone
from tests._models import SHAPE, TinyNet

CPU = torch.device("cpu")
TAPS = ["stem", "block1"]
X = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


def encoded(pixels, kind="PNG", **options):
    """The bytes of a file that shows pixels of shape (3, h, w)."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def paths(tmp_path):
    """Files of the images X."""
    written = []
    for i, pixels in enumerate(X):
        written.append(tmp_path / f"{i}.png")
        written[-1].write_bytes(encoded(pixels))
    return written


@pytest.fixture
def opened(monkeypatch):
    """Paths that are read, in order."""
    read, seen = _image_files._read, []

    def counting(path, label):
        seen.append(path)
        return read(path, label)

    monkeypatch.setattr(_image_files, "_read", counting)
    return seen


def resized(x):
    """What a user does with photographs of any size."""
    assert x.dtype == torch.uint8
    assert x.shape[:2] == (1, 3)
    return v2.functional.resize(x, [16, 16], antialias=True).float() / 255


# What is read


FORMS = {
    "paths": list,
    "tuple": tuple,
    "strings": lambda paths: [str(path) for path in paths],
    "array of strings": lambda paths: np.array([str(path) for path in paths]),
    "array of paths": lambda paths: np.array(paths, dtype=object),
    "series": lambda paths: pd.Series([str(path) for path in paths]),
    "relative": lambda paths: [os.path.relpath(path) for path in paths],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_paths_reads_the_files(paths, form):
    samples = Samples(FORMS[form](paths))
    assert len(samples) == 6
    assert samples.sample_shape == SHAPE
    batches = [prepare(raw, None, CPU, torch.float32) for _, raw in samples.batches(4)]
    assert [len(batch) for batch in batches] == [4, 2]
    np.testing.assert_array_equal(torch.cat(batches), X.astype(np.float32) / 255)


def test_rows_are_picked_and_joined_like_those_of_a_tensor(paths):
    raw = Samples(paths).raw(slice(0, 6))
    picked = raw[np.array([4, 1])] + raw[2:3]
    assert len(picked) == 3
    expected = X[[4, 1, 2]].astype(np.float32) / 255
    np.testing.assert_array_equal(prepare(picked, None, CPU, torch.float32), expected)


def test_the_folder_may_change_between_giving_and_reading(paths, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    samples = Samples([path.name for path in paths])
    monkeypatch.chdir("/")
    assert len(samples.raw(slice(0, 6))) == 6


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PPM", "TIFF", "WEBP"])
def test_files_are_decoded_as_by_the_image_folder_of_torchvision(tmp_path, kind):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / ("image.gif" if kind == "GIF" else f"image.{kind.lower()}")
    path.write_bytes(encoded(X[0], kind))
    raw = Samples([path]).raw(slice(0, 1))
    ((_, image),) = raw.decoded()
    with Image.open(path) as expected:
        np.testing.assert_array_equal(
            image, np.asarray(expected.convert("RGB")).transpose(2, 0, 1)
        )
    if kind in ("JPEG", "PPM", "BMP", "WEBP"):
        folder = ImageFolder(tmp_path, v2.PILToTensor())
        assert torch.equal(folder[0][0], image)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_every_kind_of_colour_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(X[0].transpose(1, 2, 0)).convert(mode).save(path)
    assert Samples([path]).sample_shape == SHAPE


def test_a_transparent_palette_is_no_reason_to_warn(tmp_path):
    path = tmp_path / "a.png"
    image = Image.fromarray(X[0].transpose(1, 2, 0)).convert("P")
    image.save(path, transparency=bytes(range(256)))
    ((_, decoded),) = Samples([path]).raw(slice(0, 1)).decoded()
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded, expected)


# In a backbone


def test_features_of_files_are_those_of_their_pixels(paths):
    backbone = FrozenBackbone(TinyNet(), TAPS, batch_size=4).fit(X)
    expected = backbone.transform(X)
    np.testing.assert_allclose(backbone.transform(paths), expected, rtol=1e-5)
    other = clone(backbone).fit(paths)
    assert other.sample_shape_ == SHAPE
    assert other.n_features_in_ == 3
    assert other.layout_ == backbone.layout_
    np.testing.assert_allclose(other.transform(X), expected, rtol=1e-5)
    np.testing.assert_array_equal(other.predict(paths), backbone.predict(X))


def test_files_of_any_size_are_preprocessed_one_by_one(tmp_path):
    rng = np.random.default_rng(1)
    paths, expected = [], []
    for i, (h, w) in enumerate([(16, 16), (20, 31), (40, 18)]):
        pixels = rng.integers(0, 256, (3, h, w), dtype=np.uint8)
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(encoded(pixels))
        expected.append(resized(torch.from_numpy(pixels)[None]))
    backbone = FrozenBackbone(TinyNet(), TAPS, preprocess=resized).fit(paths)
    assert backbone.sample_shape_ == (3, None, None)
    assert backbone.n_features_in_ == 3
    plain = FrozenBackbone(TinyNet(), TAPS).fit_transform(torch.cat(expected))
    features = backbone.transform(paths)
    np.testing.assert_allclose(features, plain, rtol=1e-5, atol=1e-6)
    again = pickle.loads(pickle.dumps(backbone)).transform(paths[::-1])
    np.testing.assert_allclose(again, features[::-1], rtol=1e-5, atol=1e-6)


def test_each_file_is_read_once(paths, opened, tmp_path):
    given = [*paths, *paths[:2]]
    backbone = FrozenBackbone(TinyNet(), TAPS, batch_size=3, cache=tmp_path / "cache")
    backbone.fit(given)
    for _ in range(2):
        opened.clear()
        backbone.transform(given)
        assert opened == [str(path) for path in given]
    backbone.set_params(cache=None, preprocess=resized).fit(given)
    opened.clear()
    backbone.transform(given)
    assert opened == [str(path) for path in given]


def test_equal_files_share_a_row_and_other_meanings_do_not(paths, tmp_path):
    store = FeatureStore(tmp_path / "cache")
    backbone = FrozenBackbone(TinyNet(), TAPS, cache=store).fit(X)
    copy = tmp_path / "copy.png"
    copy.write_bytes(paths[0].read_bytes())
    backbone.transform([*paths, copy])
    assert store.info()["rows"] == 6
    # The same pixels as an array have another key: nobody decodes to look them up.
    backbone.transform(X)
    assert store.info()["rows"] == 12
    # The same bytes under another preprocessing belong to another section.
    sized = clone(backbone).set_params(preprocess=resized).fit(paths)
    sized.transform(paths)
    assert (store.info()["rows"], store.info()["sections"]) == (18, 2)


def test_with_a_preprocess_files_are_no_arrays(paths):
    """A function of one image of any size is another one than of a batch."""
    of_files = FrozenBackbone(TinyNet(), TAPS, preprocess=resized).fit(paths)
    halve = FrozenBackbone(TinyNet(), TAPS, preprocess=lambda x: x / 510).fit(X)
    same = clone(of_files).set_params(preprocess=lambda x: x / 510).fit(paths)
    assert same.fingerprint_ != halve.fingerprint_
    for backbone, given in [(of_files, X), (halve, paths)]:
        with pytest.raises(
            ValueError, match=r"\(3, None, None\).*None stands for image files of any"
        ):
            backbone.transform(given)


def test_a_cascade_learns_and_answers_from_paths(tmp_path):
    pixels, y = images(90)
    pixels = (40 * pixels + 120).clip(0, 255).astype(np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(90)]
    for path, image in zip(paths, pixels, strict=True):
        path.write_bytes(encoded(image))
    for preprocess in (None, lambda x: x / 255):
        backbone = tiny_backbone(preprocess=preprocess, batch_size=32)
        cascade = CascadeClassifier(
            backbone, branch=small_branch(), margin=0.05, random_state=0
        )
        expected = clone(cascade).fit(pixels, y)
        cascade.fit(paths, y)
        assert cascade.n_features_in_ == 3
        np.testing.assert_allclose(cascade.thresholds_, expected.thresholds_, rtol=1e-3)
        for got, wanted in zip(
            cascade.predict(paths, return_depth=True),
            expected.predict(pixels, return_depth=True),
            strict=True,
        ):
            np.testing.assert_array_equal(got, wanted)
        np.testing.assert_allclose(
            cascade.predict_proba(np.array(paths)),
            expected.predict_proba(pixels),
            rtol=1e-3,
            atol=1e-5,
        )


# What is refused


def fifo(folder):
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def endless(folder):
    with open(folder / "endless", "wb") as file:
        file.truncate(2**40)  # takes no space
    return folder / "endless"


NO_FILES = {
    "endless": (endless, OSError, "File too large"),
    "missing": (lambda folder: folder / "none.png", FileNotFoundError, "No such file"),
    "folder": (lambda folder: folder, IsADirectoryError, "Is a directory"),
    "fifo": (fifo, OSError, "Not a regular file"),
    "device": (lambda _: Path("/dev/zero"), OSError, "Not a regular file"),
    "no path": (lambda _: "a\0b", ValueError, "which is no path: embedded null"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs, no /dev/zero")
@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize("row", [0, 3])
def test_what_is_no_file_is_named_without_waiting_for_it(paths, tmp_path, what, row):
    make, error, message = NO_FILES[what]
    backbone = FrozenBackbone(TinyNet(), TAPS).fit(paths)
    paths[row] = make(tmp_path)
    with pytest.raises(error, match=rf"X\[{row}\].*{message}") as caught:
        backbone.transform(paths)
    if issubclass(error, OSError):
        assert caught.value.filename == str(paths[row])
        assert caught.value.errno


def damaged(pixels):
    return {
        "text": b"import os; os.abort()",
        "empty": b"",
        "cut off": encoded(pixels, "JPEG")[:400],
        "cut off PNG": encoded(pixels)[:400],
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
        "pickle": pickle.dumps({}),
    }


@pytest.mark.parametrize("what", damaged(X[0]))
def test_a_file_that_is_no_image_is_named(paths, what):
    backbone = FrozenBackbone(TinyNet(), TAPS).fit(paths)
    paths[4].write_bytes(damaged(X[0])[what])
    with pytest.raises(
        ValueError, match=r"X\[4\] \('.*4\.png'\) cannot be decoded.*Give files of type"
    ):
        backbone.transform(paths)


def test_sixteen_bits_are_not_cut_to_eight(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((16, 16), 40000, np.uint16)).save(path)
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        FrozenBackbone(TinyNet(), TAPS).fit([path])


def test_an_image_that_would_fill_the_memory_is_refused_before_it_is_decoded(
    paths, tmp_path, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    # Above twice as many Pillow refuses, below it warns and decodes.
    large = tmp_path / "large.png"
    large.write_bytes(encoded(np.zeros((3, 10, 15), np.uint8)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for given, message in [
            ([large], "it has 15 x 10 pixels, more than the 100.*MAX_IMAGE_PIXELS"),
            (paths, "decompression bomb"),
        ]:
            with pytest.raises(ValueError, match=rf"X\[0\].*{message}"):
                FrozenBackbone(TinyNet(), TAPS).fit(given)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert FrozenBackbone(TinyNet(), TAPS).fit(paths).n_features_in_ == 3


def test_threads_decode_in_order(paths):
    n_threads = torch.get_num_threads()
    batch = Samples(paths * 3).raw(slice(0, 18))
    expected = [(label, image) for label, image in batch.decoded()]
    try:
        torch.set_num_threads(3)
        found = list(batch.decoded())
        paths[4].write_bytes(b"no image")
        broken = Samples(paths).raw(slice(0, 6)).decoded()
        with pytest.raises(ValueError, match=r"X\[4\].*cannot be decoded"):
            list(broken)
    finally:
        torch.set_num_threads(n_threads)
    assert [label for label, _ in found] == [label for label, _ in expected]
    for (_, image), (_, other) in zip(found, expected, strict=True):
        assert torch.equal(image, other)


def test_sizes_that_differ_need_a_preprocess(paths):
    fitted = FrozenBackbone(TinyNet(), TAPS).fit(paths)
    paths[5].write_bytes(encoded(X[0][:, :10]))
    with pytest.raises(
        ValueError,
        match=r"X\[5\].*is an image of shape \(3, 10, 16\).*\(3, 16, 16\).*preprocess",
    ):
        fitted.transform(paths)
    with pytest.raises(
        ValueError, match=r"shape \(3, 10, 16\), but .* was fitted with"
    ):
        fitted.predict(paths[5:])

    def scaled(x):
        return x / 255

    with pytest.raises(ValueError, match=r"X\[1\].*is preprocessed to an image of sh"):
        FrozenBackbone(TinyNet(), TAPS, preprocess=scaled).fit([paths[5], paths[0]])
    one_by_one = FrozenBackbone(TinyNet(), TAPS, preprocess=scaled, batch_size=1)
    with pytest.raises(ValueError, match=r"X\[5\].*others are of shape \(3, 16, 16\)"):
        one_by_one.fit(paths).transform(paths)


@pytest.mark.parametrize("other", [None, 3, np.zeros((3, 4))])
def test_all_samples_are_paths_or_none_is(paths, other):
    with pytest.raises(ValueError, match=r"X\[2\] is of type .*, but X\[0\] is a path"):
        Samples([*paths[:2], other])


@pytest.mark.parametrize("given", ["a.png", np.array([["a.png"]]), np.array([], str)])
def test_paths_come_in_one_list(given):
    with pytest.raises(ValueError, match=r"dtype <U.*list or 1-D array of paths"):
        Samples(given)
