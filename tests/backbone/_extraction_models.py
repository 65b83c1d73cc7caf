"""What the tests of extraction on several processes share."""

from __future__ import annotations

import os
import time
from collections import Counter
from hashlib import sha256

import numpy as np
from torch.utils.data import Dataset


def assert_close(features, expected):
    # Another process may pick other kernels for its copies: the last bits may differ.
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)


def take_lines(path):
    """Lines of a file with their number; it is empty afterwards."""
    with open(path, "r+") as file:
        lines = Counter(file.read().split())
        file.truncate(0)
    return lines


class Counting:
    """A preprocessing that leaves a line in a file for each image that it sees."""

    def __init__(self, path, seconds=0.0):
        self.path, self.seconds = str(path), seconds

    def __call__(self, x):
        time.sleep(self.seconds * len(x))
        lines = [sha256(image.numpy().tobytes()).hexdigest() for image in x.cpu()]
        with open(self.path, "a") as file:
            file.write("".join(f"{line}\n" for line in lines))
        return x.float() / 255 if not x.is_floating_point() else x

    def seen(self):
        """How often each image was seen since the last time."""
        return take_lines(self.path)


class Reading(Dataset):
    """Images in files; each read leaves a line: by which process."""

    def __init__(self, folder, X):
        self.folder, self.n, self.reading = str(folder), len(X), False
        for i, image in enumerate(X):
            np.save(f"{folder}/{i}.npy", image)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        assert not self.reading, "two threads at once"
        self.reading = True
        with open(f"{self.folder}/log", "a") as file:
            file.write(f"{os.getpid()}\n")
        self.reading = False
        return np.load(f"{self.folder}/{i}.npy"), i

    def readers(self):
        """How many samples each process has read since the last time."""
        lines = take_lines(f"{self.folder}/log")
        return Counter({int(process): n for process, n in lines.items()})
