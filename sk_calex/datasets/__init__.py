"""Image data sets: bundled with scikit-learn, found on disk, or downloaded."""

from sk_calex.datasets._base import get_data_home
from sk_calex.datasets._cifar100 import load_cifar100_coarse
from sk_calex.datasets._cinic10 import load_cinic10
from sk_calex.datasets._digits import load_digits_images

__all__ = [
    "get_data_home",
    "load_cifar100_coarse",
    "load_cinic10",
    "load_digits_images",
]
