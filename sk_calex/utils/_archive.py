"""A folder of plain data on disk: JSON, tensors and digests, written whole.

Nothing in it is code and nothing is unpickled. Every byte that is read counts in a
digest, so a damaged, shortened or edited file is an error that names the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sk_calex.utils._checked_folder import MANIFEST, read_folder, write_folder

__all__ = ["Archive", "read_archive", "write_archive"]

_FORMAT = "sk_calex"
_TENSORS = "tensors.safetensors"


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

    A `readme` is for people: it is never read, so it may be edited.

    Raises
    ------
    FileExistsError
        If something else than an archive lies at `path`.
    """
    manifest = {
        "format": _FORMAT,
        "kind": archive.kind,
        "schema": archive.schema,
        "written_by": dict(archive.written_by),
        "content": archive.content,
    }
    tensors = safetensors.torch.save(dict(archive.tensors))
    write_folder(path, manifest, {_TENSORS: tensors, **archive.blobs}, readme)


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
    manifest, files = read_folder(folder, _FORMAT)
    tensors = files.pop(_TENSORS, None)
    if tensors is None:
        raise ValueError(f"{folder / MANIFEST} does not list {_TENSORS!r}.")
    try:
        loaded = safetensors.torch.load(tensors)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / _TENSORS} is damaged: {error}") from error
    return Archive(
        manifest["kind"],
        manifest["schema"],
        manifest.get("content"),
        loaded,
        files,
        manifest["written_by"],
    )
