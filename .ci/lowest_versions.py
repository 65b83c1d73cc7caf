"""Print the lowest versions that pyproject.toml allows, as constraints for pip."""

import re
import sys
import tomllib
from pathlib import Path

OWN_EXTRAS = re.compile(r"^sk-calex\[([\w,]+)\]$")
REQUIREMENT = re.compile(r"^([\w.-]+)(?:\[[\w,.-]+\])?>=([\w.]+)(?:,<[\w.]+)?$")


def lowest(project: dict[str, object]) -> list[str]:
    """Give the lower bound of each requirement of the tests.

    Raises
    ------
    ValueError
        If a requirement has no lower bound.
    """
    extras = project["optional-dependencies"]
    required = list(project["dependencies"])
    for text in extras["test"]:
        own = OWN_EXTRAS.match(text)
        names = own[1].split(",") if own else []
        required += [line for name in names for line in extras[name]] or [text]
    lines = []
    for text in required:
        found = REQUIREMENT.match(text)
        if found is None:
            raise ValueError(f"{text!r} in pyproject.toml must be like 'name>=1.2'.")
        lines.append(f"{found[1]}=={found[2]}")
    return lines


if __name__ == "__main__":
    path = Path(__file__).parents[1] / "pyproject.toml"
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    sys.stdout.write("\n".join(lowest(content["project"])) + "\n")
