"""A folder of plain data on disk: JSON, tensors and digests, written whole.

Nothing in it is code and nothing is unpickled. Every byte that is read counts in a
digest, so a damaged, shortened or edited file is an error that names the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

__all__ = ["Archive", "read_archive", "write_archive"]

_FORMAT = "sk_calex"
_MANIFEST = "manifest.json"
_TENSORS = "tensors.safetensors"
#: A manifest holds settings and names; one that is larger is not ours.
_MAX_MANIFEST_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Archive:
    """What a folder holds.

    `content` is JSON data, `tensors` are the arrays that it refers to by name, `blobs`
    are further files. `written_by` says which versions of which packages wrote it.
    """

    kind: str
    schema: int
    content: Any
    tensors: Mapping[str, Tensor]
    blobs: Mapping[str, bytes]
    written_by: Mapping[str, str]


def write_archive(
    path: str | os.PathLike[str], archive: Archive, readme: str | None = None
) -> None:
    """Write an archive to a folder, in place of an earlier archive there.

    The folder is made beside its place and moved there when it is complete and on
    disk. A `readme` is for people: it is never read, so it may be edited.

    Raises
    ------
    FileExistsError
        If something else than an archive lies at `path`.
    """
    target = Path(path)
    if target.exists() and not (target / _MANIFEST).is_file():
        raise FileExistsError(
            f"path={str(target)!r} exists and holds no saved estimator. Give the name "
            "of a new folder, or remove what is there."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        files = {_TENSORS: safetensors.torch.save(dict(archive.tensors))}
        files |= archive.blobs
        manifest = {
            "format": _FORMAT,
            "kind": archive.kind,
            "schema": archive.schema,
            "written_by": dict(archive.written_by),
            "files": {
                name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for name, data in files.items()
            },
            "content": archive.content,
        }
        manifest["digest"] = _digest_of_json(manifest)
        text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
        files[_MANIFEST] = text.encode()
        if readme is not None:
            files["README.md"] = readme.encode()
        for name, data in files.items():
            _write_durably(making / name, data)
        making.chmod(0o755)
        if target.exists():
            # A folder cannot replace a full one in one step: set the old one aside.
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            old = aside / "old"
            try:
                target.rename(old)
                making.rename(target)
            except BaseException:
                if old.exists():
                    old.rename(target)
                raise
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        else:
            making.rename(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Read an archive and check every byte of it.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or a file of it is missing.
    ValueError
        If the folder is no archive, or a file of it is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"path={str(folder)!r} is no folder. Give the one that `save` wrote."
        )
    manifest = _read_manifest(folder / _MANIFEST)
    files = {
        name: _read_checked(folder, name, told)
        for name, told in _entries(manifest, folder).items()
    }
    tensors = files.pop(_TENSORS, None)
    if tensors is None:
        raise ValueError(f"{folder / _MANIFEST} does not list {_TENSORS!r}.")
    try:
        loaded = safetensors.torch.load(tensors)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / _TENSORS} is damaged: {error}") from error
    return Archive(
        manifest["kind"],
        manifest["schema"],
        manifest["content"],
        loaded,
        files,
        manifest["written_by"],
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    refused = f"{path} is no manifest of a saved estimator, or it is damaged"
    size = path.stat().st_size  # FileNotFoundError names the file
    if size > _MAX_MANIFEST_BYTES:
        raise ValueError(f"{refused}: it has {size} bytes.")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{refused}: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ValueError(f"{refused}: its format is not {_FORMAT!r}.")
    digest = manifest.pop("digest", None)
    if digest != _digest_of_json(manifest):
        raise ValueError(f"{refused}: its digest does not fit its content.")
    kinds = {"kind": str, "schema": int, "written_by": dict, "files": dict}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise ValueError(f"{refused}: it has no valid {name!r}.")
    return manifest


def _entries(manifest: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    for name, told in manifest["files"].items():
        plain = name != "" and Path(name).name == name and not name.startswith(".")
        if not plain or not isinstance(told, dict):
            raise ValueError(
                f"{folder / _MANIFEST} lists {name!r}, which is not the name of a file "
                "in its folder."
            )
    entries: dict[str, dict[str, Any]] = manifest["files"]
    return entries


def _read_checked(folder: Path, name: str, told: dict[str, Any]) -> bytes:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or not a plain file.")
    size = path.stat().st_size
    if size != told.get("bytes"):
        raise ValueError(
            f"{path} has {size} bytes, {told.get('bytes')} were written: it is damaged "
            "or was replaced. Copy the folder again from where it was saved."
        )
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != told.get("sha256"):
        raise ValueError(
            f"{path} is damaged or was replaced: its digest is not the one that was "
            "written. Copy the folder again from where it was saved."
        )
    return data


def _digest_of_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        for start in range(0, len(data), _CHUNK_BYTES):
            file.write(data[start : start + _CHUNK_BYTES])
        file.flush()
        os.fsync(file.fileno())
