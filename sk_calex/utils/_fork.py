"""A lock between threads that a fork leaves alone."""

from __future__ import annotations

import os
import threading

__all__ = ["fork_safe_lock"]


def fork_safe_lock() -> threading.RLock:
    """Make a lock between threads that lives as long as the process.

    No other thread holds it while the process forks: a child would wait for ever. Of
    several that a thread holds at a time, the inner one has to be made first.
    """
    made = threading.RLock()
    if hasattr(os, "register_at_fork"):  # pragma: no branch
        os.register_at_fork(
            before=made.acquire,
            after_in_parent=made.release,
            after_in_child=made.release,
        )
    return made
