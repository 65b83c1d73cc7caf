"""Frozen torch classifiers made cheaper by calibrated early exits."""

__version__ = "0.1.0"
