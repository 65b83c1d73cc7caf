"""Promises that hold on new data: exact tests, and the cascade that they certify."""

from __future__ import annotations

from ._controller import ExitRiskController
from ._paired_test import accuracy_drop_bound, paired_drop_p_value

__all__ = ["ExitRiskController", "accuracy_drop_bound", "paired_drop_p_value"]
