"""The methods that CalexNet is compared with, on the same frozen features.

Each is a cascade like `CascadeClassifier`: the same way to give the backbone, the same
`predict(return_depth=True)`, costs and runtime, and one parameter, its knob, that moves
it along the curve of accuracy against cost without a refit where the method needs none.
They are re-implementations from the published descriptions and on a frozen backbone;
each page says where they deviate. `JointCascade` and `ExitNet` are the bases for a
method of your own.
"""

from __future__ import annotations

from ._boostnet import BoostNetClassifier
from ._branchynet import BranchyNetClassifier
from ._btsee import BTSEEClassifier
from ._exit_net import ExitNet
from ._joint import JointCascade
from ._no_alignment import NoAlignmentClassifier
from ._pabee import PABEEClassifier
from ._pteenet import PTEENetClassifier
from ._sdn import SDNClassifier
from ._ztw import ZTWClassifier

__all__ = [
    "BTSEEClassifier",
    "BoostNetClassifier",
    "BranchyNetClassifier",
    "ExitNet",
    "JointCascade",
    "NoAlignmentClassifier",
    "PABEEClassifier",
    "PTEENetClassifier",
    "SDNClassifier",
    "ZTWClassifier",
]
