"""Helpers that know nothing of cascades: costs, checks, progress, modes, HTML."""
