"""MkDocs hook: tell which part of the package imports which, from the code itself.

The line ``<!-- import-graph -->`` on a page becomes a drawing of the public parts,
inline SVG that needs no script, and a table. An import that follows from others is left
out, to be readable.
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
    """Give the parts of the package that a node imports."""
    modules = _named_modules(node, path, package)
    below = {m.split(".")[1] for m in modules if m.startswith(f"{package.name}.")}
    return {
        p for p in below if (package / p).is_dir() or (package / f"{p}.py").exists()
    }


def _named_modules(node: ast.AST, path: Path, package: Path) -> list[str]:
    """Give the dotted names that a node imports: of modules, or of what is in them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module.split(".") if node.module else []
    if node.level:
        here = (package.name, *path.relative_to(package).parts[: -node.level])
        base = [*here, *base]
    # `from sk_calex import x` names a part or something of the package's root.
    return [".".join([*base, alias.name]) for alias in node.names]


def file_imports(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Give, for each file of the package, the files that it imports.

    Imports inside functions and those for annotations alone count as well: a reader
    has to know the imported file all the same.
    """
    files = {}
    for path in sorted(package.rglob("*.py")):
        dotted = ".".join(
            (package.name, *path.relative_to(package).with_suffix("").parts)
        )
        files[dotted.removesuffix(".__init__")] = path
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {
            m for node in ast.walk(tree) for m in _named_modules(node, path, package)
        }
        # `from a.b import c` imports the file a.b.c, or c from the file a.b.
        found = {m if m in files else m.rpartition(".")[0] for m in named}
        graph[name] = found & set(files) - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Give the groups of names that lead back to each other."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    reached = {name: reach(name) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Give the graph without the edges that follow from other edges."""

    def reach(part: str) -> set[str]:
        direct = graph.get(part, set())
        return direct.union(*(reach(other) for other in direct))

    return {
        part: {p for p in direct if not any(p in reach(o) for o in direct - {p})}
        for part, direct in graph.items()
    }


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Give the parts by height: each above all that it imports, the lowest last."""

    def height(part: str) -> int:
        return 1 + max((height(other) for other in graph[part]), default=-1)

    heights = {part: height(part) for part in graph}
    top = max(heights.values())
    return [sorted(p for p in graph if heights[p] == h) for h in range(top, -1, -1)]


def drawing(graph: dict[str, set[str]]) -> str:
    """Give the graph as inline SVG in the colours of the page, importers above."""
    graph = reduced(graph)
    step, line, wide = 46, 22, 720
    at: dict[str, tuple[float, float]] = {}
    # Parts of one floor do not import each other: a full one may be two rows.
    rows = [f[k : k + 6] for f in floors(graph) for k in range(0, len(f), 6)]
    for i, row in enumerate(rows):
        # Rows lean to one side in turn, so that long arrows pass beside the names.
        shift = (-1) ** i * wide / 8 / len(row)
        for k, part in enumerate(row):
            at[part] = (wide * (k + 0.5) / len(row) + shift, step * i + step / 2)
    arrows, boxes = [], []
    for part, direct in graph.items():
        x, y = at[part]
        half = 4.2 * len(part) + 8
        boxes.append(
            f'<rect x="{x - half:.0f}" y="{y - line / 2:.0f}" width="{2 * half:.0f}" '
            f'height="{line}" rx="4" fill="var(--md-default-bg-color, white)" '
            'stroke="currentColor"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{part}</text>'
        )
        for other in sorted(direct):
            to_x, to_y = at[other]
            start, end = y + line / 2, to_y - line / 2
            middle = (start + end) / 2
            arrows.append(
                f'<path d="M{x:.0f} {start:.0f}C{x:.0f} {middle:.0f} {to_x:.0f} '
                f'{middle:.0f} {to_x:.0f} {end:.0f}"/>'
            )
    return (
        f'<svg viewBox="-60 0 {wide + 120} {step * len(rows)}" role="img" '
        'aria-label="Who imports whom" style="width:100%;font-size:13px" '
        'fill="currentColor" font-family="monospace">'
        '<defs><marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L6 3L0 6z"/></marker></defs>'
        '<g fill="none" stroke="currentColor" opacity=".45" marker-end="url(#tip)">'
        f"{''.join(arrows)}</g>{''.join(boxes)}</svg>"
    )


def table(graph: dict[str, set[str]]) -> str:
    """Give a table in Markdown: each part and what it imports."""
    lines = ["| part | imports |", "|---|---|"]
    for part, direct in sorted(reduced(graph).items()):
        below = ", ".join(f"`{p}`" for p in sorted(direct))
        lines.append(f"| `{part}` | {below or 'no other part'} |")
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put drawing and table where a page asks for them."""
    if MARK not in markdown:
        return markdown
    graph = imports()
    return markdown.replace(MARK, f"{drawing(graph)}\n\n{table(graph)}")
