"""Which taps pay: every choice against a cascade that has only those branches."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

from sk_calex import MarginSearchCV, TapLayout, select_taps
from sk_calex.baselines import NoAlignmentClassifier, SDNClassifier
from sk_calex.cascade._costs import depth_prices
from sk_calex.cascade._run_on_samples import stage_table
from sk_calex.model_selection import _taps
from sk_calex.policies import ClassThresholds, Patience, first_exits
from sk_calex.utils._flops import depth_costs
from tests._cascade_models import images, small_branch, tiny_backbone
from tests.model_selection._searches import cascade

TAPS = ["stem.0", "stem", "block1"]
X, Y = images(200)
Z, W = images(120, seed=5)
MARGINS = [-0.2, 0.05, 0.3]


def backbone(**params):
    return tiny_backbone(**({"taps": TAPS} | params))


@pytest.fixture(scope="module")
def features():
    fitted = backbone().fit(X)
    return fitted.transform(X), fitted.transform(Z)


@pytest.fixture(scope="module")
def fitted(features):
    return cascade().fit(features[0], Y)


def every_choice(cascade, table, labels):
    """Accuracy and reduction of each choice of taps and margin, step by step."""
    stages = np.array(cascade.layout_.stage_macs)
    heads = np.array([branch.macs_ for branch in cascade.branches_])
    found = {}
    for size in (1, 2, 3):
        for taps in combinations(range(3), size):
            ends = np.append(np.array(taps) + 1, 4)
            merged = np.diff(np.append(0, np.cumsum(stages)[ends - 1]))
            for margin in MARGINS:
                survivors = np.ones(len(cascade.calibration_.labels), dtype=bool)
                depth = np.full(len(labels), len(taps))
                answer = table.predicted[-1].copy()
                runs = []
                for place, k in enumerate(taps):
                    given = cascade.calibration_
                    tau = cascade.calibrator_.branch_thresholds(
                        given, k, survivors, margin
                    ).thresholds
                    runs.append((tau < np.inf).any())
                    said = given.answers.stage(k)
                    survivors &= said.confidence < tau[said.predicted]
                    exits = table.confidence[k] >= tau[table.predicted[k]]
                    exits &= depth == len(taps)
                    depth[exits], answer[exits] = place, table.predicted[k][exits]
                costs = depth_costs(merged, heads[list(taps)] * np.array(runs))
                right = (answer == labels).mean()
                found[taps, margin] = right, 1 - costs[depth].mean() / stages.sum()
    return found


@pytest.fixture(scope="module")
def every(fitted, features):
    return every_choice(fitted, stage_table(fitted, features[1]), W)


def named(taps):
    return [TAPS[k] for k in taps]


@pytest.mark.parametrize(
    "constraint", [{"max_accuracy_drop": 0.03}, {"max_accuracy_drop": 0.2},
                   {"flops_budget": 0.05}, {"flops_budget": 0.3}], ids=str
)  # fmt: skip
def test_best_of_all_choices(fitted, features, every, constraint):
    plain = (stage_table(fitted, features[1]).predicted[-1] == W).mean()
    ((kind, bound),) = constraint.items()

    def rank(choice):
        right, saved = every[choice]
        if kind == "flops_budget":
            return (saved >= bound - 1e-12, right, saved)
        return (plain - right <= bound + 1e-12, saved, right)

    assert any(rank(choice)[0] for choice in every)
    best = max(every, key=rank)
    found = select_taps(fitted, features[1], W, margins=MARGINS, **constraint)
    assert (found.taps, found.margin) == (named(best[0]), best[1])
    assert (found.accuracy, found.flops_reduction) == pytest.approx(every[best])
    assert found.backbone_accuracy == pytest.approx(plain)
    assert found.search == "exhaustive"
    table = found.candidates
    assert len(table["taps"]) == 7
    for i, taps in enumerate(table["taps"]):
        point = every[tuple(map(TAPS.index, taps)), table["margin"][i]]
        assert (table["accuracy"][i], table["flops_reduction"][i]) == pytest.approx(
            point
        )
    assert table["feasible"].dtype == bool


def test_all_taps_are_the_cascade_itself(fitted, features):
    same = fitted._of_taps([0, 1, 2])
    np.testing.assert_array_equal(same.thresholds_at(0.1), fitted.thresholds_at(0.1))
    np.testing.assert_array_equal(same.depth_costs_, fitted.depth_costs_)
    assert same.layout_ == fitted.layout_


def test_a_branch_left_out_is_as_if_it_had_not_been(features):
    """Without alignment branches do not depend on each other: fit the others alone."""
    data, new = features
    layout = data.layout
    whole = NoAlignmentClassifier(
        input="features", branch=small_branch("gap"), min_support=3, random_state=0
    ).fit(data, Y)
    part = whole._of_taps([0, 2])
    cut = backbone(taps=["stem.0", "block1"]).fit(X).transform(X)
    alone = NoAlignmentClassifier(
        input="features", branch=small_branch("gap"), min_support=3, random_state=0
    ).fit(cut, Y)
    np.testing.assert_allclose(part.thresholds_at(0.1), alone.thresholds_at(0.1), 1e-4)
    for rule in (None, alone._rule_at(0.1)):
        costs = (depth_prices(one, rule)[0] for one in (part, alone))
        np.testing.assert_array_equal(*costs)
    columns = layout.select_columns(["stem.0", "block1"])
    np.testing.assert_allclose(np.asarray(data)[:, columns], cut, rtol=1e-4, atol=1e-5)
    table = stage_table(whole, new).of_stages([0, 2, 3])
    depth = first_exits(ClassThresholds(part.thresholds_at(0.1)), table)
    smaller = np.asarray(new)[:, columns]
    np.testing.assert_array_equal(depth, alone.set_margin(0.1).exit_depth(smaller))


def test_greedily_where_choices_are_many(fitted, features, every, monkeypatch):
    monkeypatch.setattr(_taps, "MAX_POINTS", 20)
    bound = {"max_accuracy_drop": 0.2, "margins": MARGINS}
    found = select_taps(fitted, features[1], W, **bound)
    assert found.search == "greedy"
    sizes = [len(taps) for taps in found.candidates["taps"]]
    assert sizes[:4] == [3, 2, 2, 2]
    # Never worse than all of them, nor than what was looked at.
    assert found.flops_reduction == max(
        np.where(found.candidates["feasible"], found.candidates["flops_reduction"], -9)
    )
    with_all = found.candidates["flops_reduction"][0]
    assert found.flops_reduction >= with_all


def test_elimination_ends_where_it_no_longer_helps(monkeypatch):
    monkeypatch.setattr(_taps, "MAX_POINTS", 0)
    names = tuple("abcd")
    worth = {(0, 1, 2, 3): 5, (0, 1, 3): 6, (1, 3): 6, (1,): 3}

    class Ranked:
        n_branches, backbone_accuracy = 4, 1.0
        folds = [
            SimpleNamespace(
                cascade=SimpleNamespace(
                    layout_=SimpleNamespace(names=names), _knob_name="margin"
                )
            )
        ]

        def of_taps(self, taps):
            point = SimpleNamespace(
                key=(0, worth.get(tuple(taps), 0)),
                value=0.1,
                accuracy=1.0,
                flops_reduction=0.0,
                feasible=True,
            )
            return SimpleNamespace(best_of=lambda values: point)

        def check(self, best, what):
            assert what == "taps=['b', 'd'] with margin"

    found = _taps.best_taps(Ranked(), [0.1])
    assert (found.taps, found.search) == (["b", "d"], "greedy")
    assert len(found.candidates["taps"]) == 1 + 4 + 3 + 2


def test_weights_mean_repetition(fitted, features):
    weight = np.random.default_rng(0).integers(0, 3, len(W))
    rows = np.repeat(np.arange(len(W)), weight)
    bound = {"max_accuracy_drop": 0.2, "margins": MARGINS}
    weighted = select_taps(fitted, features[1], W, sample_weight=weight, **bound)
    repeated = select_taps(fitted, features[1][rows], W[rows], **bound)
    assert weighted.taps == repeated.taps
    assert weighted.accuracy == pytest.approx(repeated.accuracy)
    assert weighted.flops_reduction == pytest.approx(repeated.flops_reduction)


def test_other_rules_are_fitted_anew(features):
    """A streak counts the branches that are left."""
    moved = cascade(calibrator=Patience()).fit(features[0], Y)
    found = select_taps(moved, features[1], W, max_accuracy_drop=1.0)
    table = stage_table(moved, features[1]).of_stages([0, 2, 3])
    same = table.predicted[0] == table.predicted[1]
    depth = first_exits(moved._of_taps([0, 2])._rule_at(1), table)
    np.testing.assert_array_equal(depth, np.where(same, 1, 2))
    assert set(found.candidates["margin"]) <= {0, 1, 2, 3}


def test_what_cannot_be_chosen(fitted, features):
    with pytest.raises(ValueError, match=r"the nearest, taps=\[.*\] with margin=0\.3"):
        select_taps(fitted, features[1], W, flops_budget=1.0, margins=MARGINS)
    with pytest.raises(ValueError, match="exactly one of"):
        select_taps(fitted, features[1], W)
    with pytest.raises(ValueError, match="margins='all' must be 'auto'"):
        select_taps(fitted, features[1], W, flops_budget=0.1, margins="all")
    with pytest.raises(NotFittedError):
        select_taps(cascade(), features[1], W, flops_budget=0.1)
    other = SDNClassifier(input="features", max_iter=2, device="cpu", random_state=0)
    with pytest.raises(TypeError, match="SDNClassifier trains its branches together"):
        select_taps(other.fit(features[0], Y), features[1], W, flops_budget=0.1)


# -- in a search -----------------------------------------------------------------------


def search(estimator, **params):
    settings = {"max_accuracy_drop": 0.1, "taps": "select", "cv": 2}
    return MarginSearchCV(estimator, **(settings | {"margins": MARGINS} | params))


def test_the_search_trains_on_the_chosen_taps(features):
    data, _ = features
    found = search(cascade()).fit(data, Y)
    chosen = list(found.taps_)
    assert chosen == found.tap_search_.taps
    assert len(chosen) < 3
    assert found.best_margin_ == found.tap_search_.margin
    assert found.best_score_ == pytest.approx(found.tap_search_.accuracy)
    layout = data.layout.select(chosen)
    assert found.best_estimator_.layout_ == layout
    cut = np.asarray(data)[:, data.layout.select_columns(chosen)]
    np.testing.assert_array_equal(
        found.predict(data), found.best_estimator_.predict(cut)
    )
    assert found.n_features_in_ == data.shape[1]
    with pytest.raises(ValueError, match="expected features of all candidate taps"):
        found.predict(cut)


def test_on_samples_the_backbone_is_tapped_there_only(features):
    found = search(cascade(input="samples", backbone=backbone())).fit(X, Y)
    on_features = search(cascade()).fit(features[0], Y)
    assert found.taps_ == on_features.taps_
    best = found.best_estimator_
    assert list(best.backbone.taps) == list(best.layout_.names) == list(found.taps_)
    assert best.input == "samples"
    assert found.n_features_in_ == 3
    by_hand = cascade(
        input="samples",
        backbone=backbone(taps=list(found.taps_)),
        margin=found.best_margin_,
    ).fit(X, Y)
    np.testing.assert_array_equal(found.predict(Z), by_hand.predict(Z))
    np.testing.assert_array_equal(found.exit_depth(Z), by_hand.exit_depth(Z))
    assert found.flops_reduction(Z) == by_hand.flops_reduction(Z)


def test_templates_and_pools_follow_their_taps():
    templates = [small_branch("gap", temperature=t) for t in (1.0, 2.0, 3.0)]
    pool = dict.fromkeys(TAPS, 2)
    given = cascade(input="samples", backbone=backbone(pool=pool), branch=templates)
    found = search(given).fit(X, Y)
    best = found.best_estimator_
    kept = [TAPS.index(name) for name in found.taps_]
    assert [branch.temperature for branch in best.branches_] == [k + 1.0 for k in kept]
    assert list(best.backbone.pool) == list(found.taps_)
    assert len(given.branch) == 3


def test_data_frames_and_a_margin_for_each(features):
    data, _ = features
    frame = pd.DataFrame(np.asarray(data), columns=data.layout.feature_names())
    given = cascade(backbone=backbone().fit(X))
    found = search(given, per_branch=True).fit(frame, Y)
    assert found.best_estimator_.layout_.names == found.taps_
    assert len(found.best_margin_) == len(found.taps_)
    labels = found.predict(frame)
    cut = np.asarray(data)[:, data.layout.select_columns(found.taps_)]
    np.testing.assert_array_equal(labels, found.best_estimator_.predict(cut))
    assert len(found.feature_names_in_) == data.shape[1]


def test_all_taps_are_kept_where_each_pays(features, monkeypatch):
    data, _ = features
    found = search(cascade(), refit=False).fit(data, Y)
    assert not hasattr(found, "best_estimator_")
    assert found.n_features_in_ == data.shape[1]
    one = backbone(taps=["stem"]).fit(X).transform(X)
    single = search(cascade()).fit(one, Y)
    assert single.taps_ == ("stem",)
    np.testing.assert_array_equal(
        single.predict(one), single.best_estimator_.predict(one)
    )


def test_what_the_search_cannot_choose(features):
    data, _ = features
    with pytest.raises(TypeError, match="FrozenEstimator does not allow"):
        search(FrozenEstimator(cascade().fit(data, Y))).fit(data, Y)
    with pytest.raises(TypeError, match="SDNClassifier trains them together"):
        search(SDNClassifier(input="features")).fit(data, Y)


# -- layouts ---------------------------------------------------------------------------


def test_a_layout_of_some_taps():
    layout = TapLayout(("a", "b", "c"), ((2,), (3, 1), (4,)), 2, (1, 10, 100, 1000))
    part = layout.select(["c", "a"])
    assert part == TapLayout(("a", "c"), ((2,), (4,)), 2, (1, 110, 1000))
    assert layout.select_columns(["c", "a"]).tolist() == [0, 1, 5, 6, 7, 8, 9, 10]
    assert layout.select(layout.names) == layout
    unknown_macs = TapLayout(("a", "b"), ((2,), (3,)), 2)
    assert unknown_macs.select(["b"]).stage_macs is None
    plain = TapLayout.identity(4)
    assert plain.select("x") == plain
    assert plain.select_columns("x").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("names", [[], ["a", "a"], ["d"], "d"])
def test_no_such_taps(names):
    layout = TapLayout(("a", "b"), ((2,), (3,)), 2)
    with pytest.raises(ValueError, match=r"must be some of the taps \['a', 'b'\]"):
        layout.select(names)
    with pytest.raises(ValueError, match="at least one and each once"):
        layout.select_columns(names)
