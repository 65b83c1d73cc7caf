"""The same updates on a processor without bfloat16 arithmetic."""

from __future__ import annotations

from .training_precision import updates

TABLES = {"updates": updates}
