"""MkDocs hook: an API page for each public module, made from ``__all__`` at build.

Nothing under ``api/`` is kept in the repository, so the pages cannot fall behind the
code: a name that enters ``__all__`` gets its place, one that leaves it loses it.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PACKAGES = (
    "sk_calex",
    "sk_calex.baselines",
    "sk_calex.calibration",
    "sk_calex.datasets",
    "sk_calex.policies",
)
INDEX = "api/index.md"
# In the order in which a user meets them; others follow by name.
ORDER = (
    *("backbone", "cascade", "model_selection", "inspection", "branches"),
    *("calibration", "policies", "baselines", "store", "datasets", "utils"),
)


def rank(page: str) -> tuple[int, str]:
    """Give the place of a page among the others."""
    title = page.removeprefix("sk_calex.")
    return (ORDER.index(title) if title in ORDER else len(ORDER), title)


def public_names(package: str) -> dict[str, list[str]]:
    """Give the names in the package's ``__all__``, grouped by page.

    A page is a module of ``sk_calex`` or a whole subpackage. Names of modules and
    constants such as ``__version__`` have no page.
    """
    module = importlib.import_module(package)
    pages: dict[str, list[str]] = {}
    for name in getattr(module, "__all__", ()):
        home = getattr(getattr(module, name), "__module__", None)
        if home is not None:
            page = ".".join(home.split(".")[:2])
            pages.setdefault(page, []).append(name)
    return pages


def summary(package: str, name: str) -> str:
    """Give the first line of an object's docstring."""
    text = inspect.getdoc(getattr(importlib.import_module(package), name)) or ""
    return text.partition("\n")[0]


def places() -> dict[str, dict[str, str]]:
    """Give each public name one page, and the package to import it from.

    A folder's own face comes before the top of the package, which shows the rest on the
    pages of the folders that they live in.
    """
    pages: dict[str, dict[str, str]] = {}
    seen: set[str] = set()
    for package in sorted(PACKAGES, key=lambda name: name.count("."), reverse=True):
        for home, names in sorted(public_names(package).items()):
            page = home if package == "sk_calex" else package
            for name in names:
                if name not in seen:
                    seen.add(name)
                    pages.setdefault(page, {})[name] = package
    return {page: pages[page] for page in sorted(pages, key=rank)}


def build_pages() -> dict[str, str]:
    """Give the text of every API page by its path below the docs folder."""
    index = ["# API reference", "", "In the order in which you meet the parts.", ""]
    pages: dict[str, str] = {}
    for page, names in places().items():
        title = page.removeprefix("sk_calex.")
        path = f"{title}.md"
        about = (inspect.getdoc(importlib.import_module(page)) or "").partition("\n")[0]
        text = [f"# {title}", "", about, ""]
        index += [f"## [{title}]({path})", "", about, ""]
        for name, package in names.items():
            # Named where it is defined: re-exports are aliases to the renderer.
            defined = getattr(importlib.import_module(package), name).__module__
            text += [f"::: {defined}.{name}", ""]
            line = summary(package, name)
            index.append(f"- [`{name}`][{defined}.{name}]: {line}")
        index.append("")
        pages[f"api/{path}"] = "\n".join(text)
    pages[INDEX] = "\n".join(index)
    return pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to the site and list them in its navigation."""
    pages = build_pages()
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    listed: list[Any] = [INDEX, *(path for path in pages if path != INDEX)]
    for entry in config.nav or []:
        if isinstance(entry, dict) and entry.get("API") == INDEX:
            entry["API"] = listed
    return files
