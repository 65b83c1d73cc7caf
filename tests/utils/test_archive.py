"""Archives: read back as they were written, or refused with the file's name."""

import json
import os
import re

import numpy as np
import pytest
import torch

from sk_calex.utils._archive import Archive, read_archive, write_archive
from sk_calex.utils._checked_folder import digest_of_json


def example():
    tensors = {"a": torch.arange(5.0), "b": torch.tensor([[1, 2]], dtype=torch.int16)}
    content = {"name": "x", "list": [1, None, True, 0.5]}
    return Archive("Kind", 1, content, tensors, {"c.skops": b"abc"}, {"python": "3"})


@pytest.fixture
def folder(tmp_path):
    write_archive(tmp_path / "saved", example(), "# A card\n")
    return tmp_path / "saved"


def rewrite(folder, change):
    """Change the manifest as somebody would who knows the format."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest.pop("digest", None)
    manifest["digest"] = digest_of_json(manifest)
    path.write_text(json.dumps(manifest))


def says_the_same(broken, sound):
    try:
        return json.loads(bytes(broken)) == json.loads(sound)
    except ValueError:
        return False


def test_archive_is_read_back_as_written(folder):
    found, given = read_archive(folder), example()
    assert (found.kind, found.schema, found.content) == ("Kind", 1, given.content)
    assert found.blobs == given.blobs
    assert found.written_by == given.written_by
    assert set(found.tensors) == set(given.tensors)
    for name, tensor in given.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    assert (folder / "README.md").read_text() == "# A card\n"


def test_readme_may_be_edited(folder):
    (folder / "README.md").write_text("What we found: ...")
    assert read_archive(folder).kind == "Kind"


def test_archive_replaces_an_archive_and_leaves_nothing_behind(folder):
    write_archive(folder, Archive("Other", 1, {}, {}, {}, {}))
    assert read_archive(folder).kind == "Other"
    assert not (folder / "c.skops").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


def test_archive_does_not_replace_anything_else(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("you")
    with pytest.raises(FileExistsError, match="holds no saved estimator"):
        write_archive(tmp_path / "letters", example())
    assert (tmp_path / "letters" / "dear.txt").read_text() == "you"


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_archive_that_cannot_be_written_leaves_the_old_one(folder, monkeypatch, moment):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(
        *{"fsync": (os, "fsync"), "rename": (type(folder), "rename")}[moment], fail
    )
    with pytest.raises(OSError, match="disk full"):
        write_archive(folder, Archive("Other", 1, {}, {}, {}, {}))
    monkeypatch.undo()
    assert read_archive(folder).kind == "Kind"
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


def test_old_archive_comes_back_where_the_last_step_fails(folder, monkeypatch):
    rename, calls = type(folder).rename, []

    def fail_second(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("gone")
        return rename(self, target)

    monkeypatch.setattr(type(folder), "rename", fail_second)
    with pytest.raises(OSError, match="gone"):
        write_archive(folder, Archive("Other", 1, {}, {}, {}, {}))
    monkeypatch.undo()
    assert read_archive(folder).kind == "Kind"


def test_changed_bytes_are_refused_by_the_name_of_the_file(folder):
    rng = np.random.default_rng(0)
    for name in ("manifest.json", "tensors.safetensors", "c.skops"):
        path = folder / name
        sound = path.read_bytes()
        for place in rng.integers(0, len(sound), 170):
            broken = bytearray(sound)
            broken[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(broken))
            if name == "manifest.json" and says_the_same(broken, sound):
                continue  # white space
            with pytest.raises(ValueError, match=re.escape(name)):
                read_archive(folder)
        path.write_bytes(sound)


@pytest.mark.parametrize("name", ["manifest.json", "tensors.safetensors", "c.skops"])
@pytest.mark.parametrize("left", [0, 1, 0.5])
def test_shortened_files_are_refused(folder, name, left):
    data = (folder / name).read_bytes()
    keep = int(left * len(data)) if left < 1 else len(data) - 1
    (folder / name).write_bytes(data[:keep])
    if name == "manifest.json" and keep == len(data) - 1:
        return  # the line's end
    with pytest.raises(ValueError, match=name):
        read_archive(folder)


@pytest.mark.parametrize("name", ["manifest.json", "tensors.safetensors", "c.skops"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_archive(folder)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.*save"):
        read_archive(tmp_path / "nothing")


def test_links_are_not_followed(folder, tmp_path):
    (folder / "c.skops").rename(tmp_path / "elsewhere")
    (folder / "c.skops").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="not a plain file"):
        read_archive(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", ".hidden", "a/b", ""])
def test_names_outside_of_the_folder_are_refused(folder, name):
    def change(manifest):
        manifest["files"][name] = {"bytes": 1, "sha256": "0"}

    rewrite(folder, change)
    with pytest.raises(ValueError, match="not the name of a file"):
        read_archive(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="zip"), "its format"),
        (lambda m: m.update(schema="one"), "no valid 'schema'"),
        (lambda m: m.pop("kind"), "no valid 'kind'"),
        (lambda m: m.update(files=[]), "no valid 'files'"),
        (lambda m: m["files"].pop("tensors.safetensors"), "does not list"),
        (lambda m: m["files"].update({"c.skops": 3}), "not the name of a file"),
    ],
)
def test_wrong_manifests_are_refused(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        read_archive(folder)


def test_tensors_that_are_none_are_refused(folder):
    import hashlib

    data = b"\xff" * 40
    (folder / "tensors.safetensors").write_bytes(data)

    def change(manifest):
        manifest["files"]["tensors.safetensors"] = {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    rewrite(folder, change)
    with pytest.raises(ValueError, match=r"tensors\.safetensors is damaged"):
        read_archive(folder)


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "3", "{", '{"format": "x"}'])
def test_other_json_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="no manifest of a saved estimator"):
        read_archive(folder)


def test_huge_manifests_are_not_read(folder, monkeypatch):
    monkeypatch.setattr("sk_calex.utils._checked_folder._MAX_MANIFEST_BYTES", 10)
    with pytest.raises(ValueError, match="bytes"):
        read_archive(folder)
