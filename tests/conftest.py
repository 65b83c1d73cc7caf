"""What every test gets: fixed draws, no network, torch's thread count left alone."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import hypothesis
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")

# The same examples on every run, and no deadline: a shared machine may pause.
hypothesis.settings.register_profile("sk_calex", deadline=None, derandomize=True)
hypothesis.settings.load_profile("sk_calex")


@pytest.fixture(autouse=True)
def fixed_draws() -> None:
    """Give modules that a test builds the same random weights on every run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def threads_start_untraced() -> None:
    """Leave the threads that a test starts out of the coverage.

    Python refuses a tracer to a thread that starts while another one gets its own. The
    thread then ends at once, and what waits for it never returns.
    """
    threading.settrace(None)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def same_thread_count() -> Iterator[None]:
    """Fail a test in which the package changes torch's number of threads."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that connects to anywhere but this machine."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        inet = self.family in (socket.AF_INET, socket.AF_INET6)
        if inet and address[0] not in ("127.0.0.1", "::1", "localhost"):  # type: ignore[index]
            raise OSError(f"a test tried to connect to {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", local_only)
