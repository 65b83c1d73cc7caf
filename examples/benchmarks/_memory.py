"""Images without end, a small network on them, and the memory of a process."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Synthetic(Dataset):
    """Images from a counter: as many as asked for, none kept."""

    def __init__(self, n: int, shape: tuple[int, ...]) -> None:
        self.n, self.shape = n, shape

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Tensor:
        generator = torch.Generator().manual_seed(i)
        return torch.randint(256, self.shape, dtype=torch.uint8, generator=generator)


def small_network(
    shape: tuple[int, ...], channels: int, n_classes: int, seed: int
) -> nn.Sequential:
    """A convolution, whose activation is module "1", pooling and a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(shape[0], channels, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, n_classes),
    ).eval()


def read_memory() -> np.ndarray:
    """Resident memory of this process and the part that is no file, in MiB."""
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
    )
    return np.array([int(fields[k].split()[0]) / 1024 for k in ("VmRSS", "RssAnon")])


class MemoryWatch:
    """The largest of `read_memory` in the block, looked at every 5 milliseconds."""

    def __enter__(self) -> MemoryWatch:
        self.peak, self._running = read_memory(), True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while self._running:
            self.peak = np.maximum(self.peak, read_memory())
            time.sleep(0.005)

    def __exit__(self, *exception: object) -> None:
        self._running = False
        self._thread.join()
