"""Griffe extension: public names in docstrings become links to their API pages.

"See Also" of numpydoc turns into a list of links, and a name in single backticks, as
scikit-learn writes it, into a link where it stands.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Any

import griffe

PACKAGES = (
    "sk_calex",
    "sk_calex.baselines",
    "sk_calex.datasets",
    "sk_calex.policies",
)
SEE_ALSO = re.compile(r"^See Also\n-{8}\n(?P<lines>(?:.*\S.*\n?)+)", re.MULTILINE)
ENTRY = re.compile(r"^(?P<names>[\w., ]+?)(?: : (?P<text>.*))?$")
IN_BACKTICKS = re.compile(r"(?<![`\[\w])`(?P<name>[A-Za-z_][\w.]*)`(?![`\w])")


@cache
def public_names() -> dict[str, str]:
    """Give where each public name is defined, by the name with and without package."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            home = getattr(getattr(module, name), "__module__", None)
            if home is not None:
                found[name] = found[f"{package}.{name}"] = f"{home}.{name}"
    return found


def link(name: str) -> str:
    """Give a link to a public name, or the name as code."""
    path = public_names().get(name)
    return f"`{name}`" if path is None else f"[`{name}`][{path}]"


def linked(text: str, own: str = "") -> str:
    """Give a docstring with links; a name is not linked on its own page."""

    def see_also(found: re.Match[str]) -> str:
        lines = [f"See Also\n{'-' * 8}\n"]
        for line in found["lines"].splitlines():
            entry = ENTRY.match(line) if line[0] != " " else None
            if entry is None:  # goes on with the entry before
                lines.append(f"  {line.strip()}\n")
                continue
            names = [link(name.strip()) for name in entry["names"].split(",")]
            rest = f": {entry['text']}" if entry["text"] else ""
            lines.append(f"- {', '.join(names)}{rest}\n")
        return "".join(lines)

    def in_text(found: re.Match[str]) -> str:
        name = found["name"]
        return found[0] if name == own or name not in public_names() else link(name)

    head, mark, code = text.partition("\nExamples\n--------\n")
    return SEE_ALSO.sub(see_also, IN_BACKTICKS.sub(in_text, head)) + mark + code


class LinkNames(griffe.Extension):
    """Link the names in every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = linked(obj.docstring.value, obj.name)
