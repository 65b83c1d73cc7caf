"""A folder of files under one manifest, written whole and read with every byte checked.

Nothing here needs torch, so that what was exported can be served without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["MANIFEST", "digest_of_json", "read_folder", "write_folder"]

MANIFEST = "manifest.json"
#: A manifest holds settings and names; one that is larger is not ours.
_MAX_MANIFEST_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20


def write_folder(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes],
    readme: str | None = None,
) -> None:
    """Write files and their manifest to a folder, in place of an earlier one there.

    The folder is made beside its place and moved there when it is complete and on
    disk.

    Parameters
    ----------
    path : str or path-like
        The folder.
    manifest : mapping of str
        JSON data with the keys "format" (str), "kind" (str), "schema" (int) and
        "written_by" (dict). Sizes and digests of the files, and of the manifest itself,
        are added.
    files : mapping of str to bytes
        Contents by file name.
    readme : str, default=None
        Text of README.md. It is for people: never read, so it may be edited.

    Raises
    ------
    FileExistsError
        If something else than such a folder lies at `path`.
    """
    target = Path(path)
    if target.exists() and not (target / MANIFEST).is_file():
        raise FileExistsError(
            f"path={str(target)!r} exists and holds no saved estimator. Give the name "
            "of a new folder, or remove what is there."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        listed = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        }
        full = {**manifest, "files": listed}
        full["digest"] = digest_of_json(full)
        text = json.dumps(full, indent=1, allow_nan=False) + "\n"
        for name, data in files.items():
            _write_durably(making / name, data)
        _write_durably(making / MANIFEST, text.encode())
        if readme is not None:
            _write_durably(making / "README.md", readme.encode())
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


def read_folder(
    path: str | os.PathLike[str], format: str, max_bytes: int | None = None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read a folder that `write_folder` wrote, and check every byte of it.

    Parameters
    ----------
    path : str or path-like
        The folder.
    format : str
        What its manifest must give as "format".
    max_bytes : int, default=None
        Largest size of a file. None: any.

    Returns
    -------
    manifest : dict
        Without the digest.
    files : dict of str to bytes
        Contents by file name.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or a file of it is missing.
    ValueError
        If it has another format, or a file of it is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"path={str(folder)!r} is no folder. Give the one that `save` or "
            "`export_onnx` wrote."
        )
    manifest = _read_manifest(folder / MANIFEST, format)
    files = {
        name: _read_checked(folder, name, entry, max_bytes)
        for name, entry in _entries(manifest, folder).items()
    }
    return manifest, files


def digest_of_json(value: Any) -> str:
    """Compute the SHA-256 of JSON data, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_manifest(path: Path, format: str) -> dict[str, Any]:
    refused = f"{path} is no manifest of a saved estimator, or it is damaged"
    size = path.stat().st_size  # FileNotFoundError names the file
    if size > _MAX_MANIFEST_BYTES:
        raise ValueError(f"{refused}: it has {size} bytes.")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{refused}: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != format:
        raise ValueError(f"{refused}: its format is not {format!r}.")
    digest = manifest.pop("digest", None)
    if digest != digest_of_json(manifest):
        raise ValueError(f"{refused}: its digest does not fit its content.")
    kinds = {"kind": str, "schema": int, "written_by": dict, "files": dict}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise ValueError(f"{refused}: it has no valid {name!r}.")
    return manifest


def _entries(manifest: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    for name, entry in manifest["files"].items():
        plain = name != "" and Path(name).name == name and not name.startswith(".")
        if not plain or not isinstance(entry, dict):
            raise ValueError(
                f"{folder / MANIFEST} lists {name!r}, which is not the name of a file "
                "in its folder."
            )
    entries: dict[str, dict[str, Any]] = manifest["files"]
    return entries


def _read_checked(
    folder: Path, name: str, entry: dict[str, Any], max_bytes: int | None
) -> bytes:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or not a plain file.")
    size = path.stat().st_size
    if size != entry.get("bytes"):
        raise ValueError(
            f"{path} has {size} bytes, {entry.get('bytes')} were written: it is "
            "damaged or was replaced. Copy the folder again from where it was saved."
        )
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"{path} has {size} bytes; at most {max_bytes} are read.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise ValueError(
            f"{path} is damaged or was replaced: its digest is not the one that was "
            "written. Copy the folder again from where it was saved."
        )
    return data


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        for start in range(0, len(data), _CHUNK_BYTES):
            file.write(data[start : start + _CHUNK_BYTES])
        file.flush()
        os.fsync(file.fileno())
