"""Saving fitted estimators to a folder without pickle, and loading them."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sk_calex.utils._archive import Archive, read_archive, write_archive
from sk_calex.utils._codec import CannotSaveError, Decoder, Encoder
from sk_calex.utils._versions import installed_parts

__all__ = [
    "LoadError",
    "SavableMixin",
    "library_versions",
    "load",
    "model_card",
    "plain_seed",
]

#: Raised when an archive could no longer be read by the code before.
_SCHEMA = 1
# What wrong content leads to while it is read: no other error may come out of `load`.
_WRONG_CONTENT = (
    *(AttributeError, IndexError, KeyError, OverflowError, RecursionError),
    *(RuntimeError, TypeError, ValueError),
)


class LoadError(ValueError):
    """An error of `load` whose message already says what to do."""


class SavableMixin:
    """Gives a fitted estimator `save`."""

    def save(
        self, path: str | os.PathLike[str], *, embed_backbone: bool = False
    ) -> None:
        """Save the fitted estimator to a folder, without pickle.

        Weights and arrays are written as safetensors, all else as JSON, with a digest
        of every file. Branches and last stages of scikit-learn are written by
        `skops.io`. Of the network of a `FrozenBackbone` the fingerprint is in the
        folder, and with `embed_backbone` its weights; the code never is, so
        `sk_calex.load` takes the network. A ``README.md`` in the format of model cards
        says what was measured; it is never read again.

        Parameters
        ----------
        path : str or path-like
            The folder. An estimator that was saved there before is replaced, once the
            new one is on disk.
        embed_backbone : bool, default=False
            Whether the weights of the network are in the folder, too.

            - False: where many cascades share a network that is kept elsewhere.
            - True: where the folder is all that is moved. `load` then takes the network
              with any weights, as its class makes it, and loads these into a copy.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        CannotSaveError
            If a part has no plain form, such as a class of yours as a branch. A
            `TypeError`.
        ImportError
            If a part is an estimator of scikit-learn and skops is not installed.
        FileExistsError
            If something else lies at `path`.
        ValueError
            If there is no network to embed.
        """
        check_is_fitted(self)
        encoder = Encoder(embed_backbone=embed_backbone)
        name = type(self).__name__
        content = encoder.encode(self, name)
        if not isinstance(content, dict) or content.get("class") != name:
            raise CannotSaveError(
                f"{name} is a class of yours, which the loader would not know. Save an "
                "estimator of sk_calex, or use joblib.dump for files that no one else "
                "can write to."
            )
        if embed_backbone and not encoder.embedded:
            raise ValueError(
                f"embed_backbone=True, but this {name} holds no network: it was fitted "
                "on features or on plain data. Save it with embed_backbone=False."
            )
        archive = Archive(
            name, _SCHEMA, content, encoder.tensors, encoder.blobs, library_versions()
        )
        write_archive(path, archive, self._model_card())

    def _model_card(self) -> str:
        """Return the text of README.md."""
        name = type(self).__name__
        return model_card(name, {}, f"A fitted `{name}`.")


def load(
    path: str | os.PathLike[str], backbone: Any = None, *, trusted: bool = False
) -> Any:
    """Load an estimator from the folder that its `save` wrote.

    Only classes of sk_calex are made, and only from plain data, so nothing in the
    folder is run, and without `trusted` nothing that it names is. Every byte is checked
    against its digest first. (Digests detect damage, not forgery: whoever can write to
    the folder can replace both.)

    Parameters
    ----------
    path : str or path-like
        The folder.
    backbone : torch.nn.Module or FrozenBackbone, default=None
        The network, where the estimator has one: the module, or a `FrozenBackbone`
        around it if `preprocess` or `cache` were given when it was saved. It must have
        the fingerprint of the network that the estimator was fitted with. Where that
        was saved with ``embed_backbone=True``, its weights do not matter, and it may be
        on the meta device: those of the folder are loaded into a copy of it.
    trusted : bool, default=False
        Whether estimators of scikit-learn in the folder may hold types that skops does
        not know to be safe, and functions that make heads of the writer's own are
        imported by name. Set it only for folders whose writer you trust.

    Returns
    -------
    estimator : estimator
        Fitted, of the class that was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or a file of it is missing.
    ValueError
        If a file is damaged, the folder was written by a later version, the backbone is
        missing or another one, or a file holds types that are not trusted.

    Examples
    --------
    >>> import tempfile
    >>> import sk_calex
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> branch = sk_calex.BranchClassifier("gap", random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     branch.save(f"{folder}/iris")
    ...     loaded = sk_calex.load(f"{folder}/iris")
    >>> bool((loaded.predict_proba(X) == branch.predict_proba(X)).all())
    True
    """
    archive = read_archive(path)
    wrote = ", ".join(f"{k} {v}" for k, v in archive.written_by.items())
    if archive.schema > _SCHEMA:
        raise ValueError(
            f"{os.fspath(path)!r} was written with schema {archive.schema} by {wrote}; "
            f"this version reads schemas up to {_SCHEMA}. Update sk_calex."
        )
    decoder = Decoder(
        archive.tensors, archive.blobs, backbone=backbone, trusted=trusted
    )
    try:
        estimator = decoder.decode(archive.content)
    except LoadError:
        raise
    except _WRONG_CONTENT as error:
        raise ValueError(
            f"{os.fspath(path)!r} cannot be read ({type(error).__name__}: {error}). It "
            f"was written by {wrote}."
        ) from error
    if type(estimator).__name__ != archive.kind:
        raise ValueError(
            f"{os.fspath(path)!r} holds a {type(estimator).__name__}, but its manifest "
            f"says {archive.kind!r}."
        )
    return estimator


def plain_seed(random_state: Any) -> int | None:
    """Return a seed that can be saved: a generator's state would be, a number is."""
    return int(random_state) if isinstance(random_state, int | np.integer) else None


def model_card(title: str, facts: Mapping[str, str], text: str) -> str:
    """Write a model card as the Hugging Face hub reads it: a header, facts, a text."""
    lines = [
        "---",
        "library_name: sk_calex",
        "tags:",
        "- early-exit",
        "- image-classification" if "taps" in facts else "- tabular-classification",
        "---",
        "",
        f"# {title}",
        "",
        text,
        "",
    ]
    if facts:
        lines += ["| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in facts.items()]
        lines.append("")
    written = ", ".join(
        f"{name} {version}" for name, version in library_versions().items()
    )
    lines += [f"Written by {written}.", ""]
    return "\n".join(lines)


def library_versions() -> dict[str, str]:
    """Return the versions of what writes a folder, by package."""
    needed = installed_parts()["needed"]
    names = ("sk_calex", "torch", "scikit-learn", "numpy", "safetensors")
    versions = {name: needed[name] for name in names}
    return versions | {"python": platform.python_version()}
