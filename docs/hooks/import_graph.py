"""MkDocs hook: tell which part of the package imports which, from the code itself.

The line ``<!-- import-graph -->`` on a page becomes a table of the public parts. An
import that follows from others is left out, to be readable. A drawing by mermaid would
have to be fetched from another host.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "sk_calex"
MARK = "<!-- import-graph -->"


def part_of(path: Path, package: Path = PACKAGE) -> str:
    """Give the part a file belongs to: a module, or a subpackage as a whole."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Give, for each public part of the package, the public parts that it imports.

    Helpers, whose names start with an underscore, are seen through: who imports a
    helper imports what the helper imports.
    """
    direct: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        wanted = direct.setdefault(part_of(path, package), set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            wanted |= _imported(node, path, package)

    def public(part: str, seen: frozenset[str]) -> set[str]:
        found = direct[part] - seen
        helpers = {p for p in found if p.startswith("_")}
        return (found - helpers).union(*(public(h, seen | helpers) for h in helpers))

    parts = [part for part in direct if not part.startswith("_")]
    return {part: public(part, frozenset()) - {part} for part in parts}


def _imported(node: ast.AST, path: Path, package: Path) -> set[str]:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module.split(".") if node.module else []
        if node.level:
            here = (package.name, *path.relative_to(package).parts[: -node.level])
            base = [*here, *base]
        # `from sk_calex import x` names a part or something of the package's root.
        modules = [".".join([*base, alias.name]) for alias in node.names]
    else:
        return set()
    below = {m.split(".")[1] for m in modules if m.startswith(f"{package.name}.")}
    return {
        p for p in below if (package / p).is_dir() or (package / f"{p}.py").exists()
    }


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Give the graph without the edges that follow from other edges."""

    def reach(part: str) -> set[str]:
        direct = graph.get(part, set())
        return direct.union(*(reach(other) for other in direct))

    return {
        part: {p for p in direct if not any(p in reach(o) for o in direct - {p})}
        for part, direct in graph.items()
    }


def table(graph: dict[str, set[str]]) -> str:
    """Give a table in Markdown: each part and what it imports."""
    lines = ["| part | imports |", "|---|---|"]
    for part, direct in sorted(reduced(graph).items()):
        below = ", ".join(f"`{p}`" for p in sorted(direct))
        lines.append(f"| `{part}` | {below or 'no other part'} |")
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table where a page asks for it."""
    if MARK not in markdown:
        return markdown
    return markdown.replace(MARK, table(imports()))
