"""scikit-learn's common checks on every estimator that takes arbitrary X.

No failure is expected, not even where weights must mean repetition: that check gives a
cascade the same split for both fits.
"""

from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    PrototypePoolingClassifier,
    baselines,
)
from sk_calex.heads import HEADS


@parametrize_with_checks(
    [
        CascadeClassifier(),
        PrototypePoolingClassifier(),
        *(BranchClassifier(head) for head in HEADS),
        *(getattr(baselines, name)() for name in baselines.__all__),
    ]
)
def test_common_checks(estimator, check):
    check(estimator)
