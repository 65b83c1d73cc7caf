"""scikit-learn's common checks on every estimator that takes arbitrary X.

No failure is expected of the cascades, not even where weights must mean repetition:
that check gives a cascade the same split for both fits. It cannot give one to the
cascade inside a search, which takes the plain network here, whatever the split: its
equivalence under fixed splits has a test of its own.

Some checks fit a dozen rows. Where branches learn the answers of the last stage, that
is a tree, which has all of its rows right: a linear one may answer one class alone, and
that is refused.
"""

from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    MarginSearchCV,
    PrototypePoolingClassifier,
    baselines,
)
from sk_calex.branches._heads import HEADS
from tests.branches.test_own_heads import TwoLayers

# All but the bases for methods of one's own.
METHODS = [
    getattr(baselines, name)
    for name in baselines.__all__
    if name not in ("ExitNet", "JointCascade")
]

TREE = {"final_estimator": DecisionTreeClassifier(random_state=0)}
LAST_STAGE = {"BTSEEClassifier": TREE, "NoAlignmentClassifier": TREE}

# Quick, and with folds that a dozen samples can fill: a search fits it several times.
SMALL = CascadeClassifier(branch=LogisticRegression(), cv=2, random_state=0)


@parametrize_with_checks(
    [
        CascadeClassifier(random_state=0),
        PrototypePoolingClassifier(random_state=0),
        # That of PrototypePoolingClassifier is checked there.
        *(
            BranchClassifier(head, random_state=0)
            for head in HEADS
            if head != "prototype_augmented"
        ),
        BranchClassifier(TwoLayers, random_state=0),
        *(
            method(random_state=0, **LAST_STAGE.get(method.__name__, {}))
            for method in METHODS
        ),
        MarginSearchCV(SMALL, margins=(0.0, 0.2), max_accuracy_drop=1.0, cv=3),
    ],
)
def test_common_checks(estimator, check):
    check(estimator)
