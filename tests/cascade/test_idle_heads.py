"""A head at whose branch no class can exit is neither run nor counted."""

import pickle
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sk_calex
from sk_calex import (
    CascadeClassifier,
    ExitMonitor,
    MarginSearchCV,
    SurvivorThresholdCalibrator,
    operating_curve,
)
from sk_calex.baselines import (
    BoostNetClassifier,
    BranchyNetClassifier,
    BTSEEClassifier,
    NoAlignmentClassifier,
    PABEEClassifier,
    PTEENetClassifier,
    SDNClassifier,
    ZTWClassifier,
)
from sk_calex.calibration import CalibrationWarning
from sk_calex.policies import ClassThresholds, Patience, SharedThreshold
from tests._cascade_models import STAGE_MACS, small_branch, tiny_backbone
from tests._fixed_cascade import Columns, fixed_cascade
from tests._fixed_cascade import rows as fixed_rows
from tests._quick_cascade import FIXED, TEST, X, Y, on_images

PLAIN = sum(STAGE_MACS)
NEVER = SharedThreshold(np.inf)


def joint(method, **params):
    """A baseline with small heads."""
    return method(
        tiny_backbone(), max_iter=2, cv=FIXED, random_state=0, device="cpu", **params
    )


def calex(method, **params):
    """A baseline of the cascade's own kind."""
    return method(
        tiny_backbone(), branch=small_branch("gap"), cv=FIXED, random_state=0, **params
    )


#: Unfitted methods; those on the right pass something from branch to branch.
MAKERS = {
    "CalexNet": lambda: on_images(),
    "BT-SEE": lambda: calex(BTSEEClassifier),
    "no alignment": lambda: calex(NoAlignmentClassifier),
    "BranchyNet": lambda: joint(BranchyNetClassifier, head="gap"),
    "SDN": lambda: joint(SDNClassifier, head="gap"),
    "PABEE": lambda: joint(PABEEClassifier),
    "PTEENet": lambda: joint(PTEENetClassifier, widths=(4,)),
}
CHAINED = {
    "BoostNet": lambda: joint(BoostNetClassifier, head="gap"),
    "ZTW": lambda: joint(ZTWClassifier, width=4),
}


@cache
def fitted(name):
    """One fit for many tests, which set its rule."""
    return (MAKERS | CHAINED)[name]().fit(X, Y)


def with_exits_at(cascade, *branches):
    """Thresholds of the confidence that samples can reach at some branches only."""
    thresholds = np.full((2, 3), np.inf)
    thresholds[list(branches)] = 0.6
    cascade.calibrator_ = ClassThresholds(thresholds)
    return cascade


def heads_asked(cascade, monkeypatch, run):
    """Rows that each head was asked about while something runs, and its result."""
    asked = [0] * len(cascade.branches_)
    original = type(cascade)._answers

    def counted(self):
        def wrap(k, answer):
            def said(features, before):
                asked[k] += len(features)
                return answer(features, before)

            return said

        *branches, last = original(self)
        return [*(wrap(k, each) for k, each in enumerate(branches)), last]

    with monkeypatch.context() as patch:
        patch.setattr(type(cascade), "_answers", counted)
        result = run()
    return asked, result


# -- nothing exits ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MAKERS, *CHAINED])
def test_where_nothing_exits_it_is_the_plain_network(name, monkeypatch):
    cascade = fitted(name)
    cascade.set_calibrator(NEVER)
    for method in ("predict", "predict_proba", "predict_details", "cost"):
        asked, result = heads_asked(
            cascade, monkeypatch, lambda m=method: getattr(cascade, m)(TEST)
        )
        assert asked == [0, 0]
    assert (result == PLAIN).all()
    plain = cascade.backbone_.predict(TEST)
    np.testing.assert_array_equal(cascade.predict(TEST), plain)
    np.testing.assert_array_equal(cascade.depth_costs_[-1], PLAIN)
    assert cascade.flops_reduction(TEST) == cascade.cost_reduction(TEST) == 0
    said = cascade.predict_details(TEST)
    assert said.first_stage == 2
    np.testing.assert_array_equal(said.labels, plain)
    np.testing.assert_array_equal(said.cost, PLAIN)
    np.testing.assert_array_equal(cascade.classes_[said.first_predicted], plain)
    np.testing.assert_array_equal(said.first_confidence, said.probabilities.max(axis=1))
    (one,) = cascade.predict_iter([TEST])
    assert one.first_stage == 2
    cascade.set_calibrator(None)


def test_no_hook_of_a_head_is_called():
    cascade = fitted("SDN")
    cascade.set_calibrator(NEVER)
    called = []
    handles = [
        head.register_forward_hook(lambda *_: called.append(1))
        for head in cascade._fused_net_.heads
    ]
    cascade.predict(TEST)
    assert not called
    cascade.set_calibrator(SharedThreshold(-np.inf)).predict(TEST)
    assert called
    for handle in handles:
        handle.remove()
    cascade.set_calibrator(None)


def test_a_tap_is_not_pooled_for_a_head_that_rests(monkeypatch):
    cascade = fitted("CalexNet")
    runner = cascade.backbone_.runner()
    shaped = []
    original = type(runner).shape_outputs

    def counted(self, stage, output):
        shaped.append(stage)
        return original(self, stage, output)

    monkeypatch.setattr(type(runner), "shape_outputs", counted)
    with_exits_at(cascade, 1).predict(TEST)
    assert sorted(set(shaped)) == [1, 2]
    cascade.set_calibrator(cascade.calibrator)


# -- some heads rest -------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_a_head_before_the_first_exit_rests(name, monkeypatch):
    cascade = with_exits_at(fitted(name), 1)
    heads = cascade._branch_macs()
    first, second = np.cumsum(STAGE_MACS)[:2]
    costs = [first, second + heads[1], PLAIN + heads[1]]
    np.testing.assert_allclose(cascade.depth_costs_, costs)
    asked, depth = heads_asked(cascade, monkeypatch, lambda: cascade.exit_depth(TEST))
    assert asked == [0, len(TEST)]
    spent = STAGE_MACS[0] + STAGE_MACS[1] + heads[1] + STAGE_MACS[2] * (depth == 2)
    np.testing.assert_allclose(cascade.cost(TEST), spent)
    np.testing.assert_allclose(
        cascade.flops_reduction(TEST), 1 - spent.mean() / PLAIN, atol=1e-12
    )
    said = cascade.predict_details(TEST)
    assert said.first_stage == 1
    by_stage = cascade.stage_probabilities(TEST)
    np.testing.assert_array_equal(said.first_predicted, by_stage[1].argmax(axis=1))
    answered = by_stage[depth, np.arange(len(TEST))]
    np.testing.assert_allclose(said.probabilities, answered, rtol=1e-4, atol=1e-6)
    cascade.set_calibrator(None)


@pytest.mark.parametrize("name", CHAINED)
def test_heads_that_a_later_one_builds_on_still_run(name, monkeypatch):
    cascade = with_exits_at(fitted(name), 1)
    heads = cascade._branch_macs()
    assert cascade.depth_costs_[-1] == PLAIN + sum(heads)
    asked, depth = heads_asked(cascade, monkeypatch, lambda: cascade.exit_depth(TEST))
    assert asked == [len(TEST)] * 2
    by_stage = cascade.stage_probabilities(TEST)
    np.testing.assert_allclose(
        cascade.predict_proba(TEST),
        by_stage[depth, np.arange(len(TEST))],
        rtol=1e-4,
        atol=1e-6,
    )
    cascade.set_calibrator(None)


@pytest.mark.parametrize("name", [*MAKERS, *CHAINED])
def test_heads_after_the_last_exit_rest(name, monkeypatch):
    cascade = with_exits_at(fitted(name), 0)
    heads = cascade._branch_macs()
    assert cascade.depth_costs_[-1] == PLAIN + heads[0]
    asked, _ = heads_asked(cascade, monkeypatch, lambda: cascade.predict(TEST))
    assert asked == [len(TEST), 0]
    cascade.set_calibrator(None)


def test_an_ensemble_takes_all_branches_in(monkeypatch):
    """Its last stage answers with them, so that they run even if nothing exits."""
    cascade = on_images(ensemble=True).fit(X, Y)
    before = cascade.stage_probabilities(TEST)[-1]
    cascade.set_calibrator(NEVER)
    asked, proba = heads_asked(
        cascade, monkeypatch, lambda: cascade.predict_proba(TEST)
    )
    assert asked == [len(TEST)] * 2
    np.testing.assert_allclose(proba, before, rtol=1e-4, atol=1e-6)
    assert cascade.depth_costs_[-1] == PLAIN + sum(cascade._branch_macs())


def test_streaks_need_the_branches_before(monkeypatch):
    cascade = fitted("CalexNet")
    cascade.set_calibrator(Patience(1))  # no exit at the first branch, one at the next
    asked, depth = heads_asked(cascade, monkeypatch, lambda: cascade.exit_depth(TEST))
    assert asked == [len(TEST)] * 2
    codes = cascade.stage_probabilities(TEST).argmax(axis=2)
    np.testing.assert_array_equal(depth, np.where(codes[0] == codes[1], 1, 2))
    cascade.set_calibrator(Patience(2))  # more than there are
    assert cascade.depth_costs_[-1] == PLAIN
    cascade.set_calibrator(cascade.calibrator)
    cascade.calibrator = None


def test_there_and_back_revives_heads():
    cascade = on_images().fit(X, Y)
    cascade.set_margin(0.3)
    lax, depth = cascade.depth_costs_, cascade.exit_depth(TEST)
    loaded = pickle.loads(pickle.dumps(cascade))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        cascade.set_margin(-1.0)
    assert cascade.depth_costs_[-1] == PLAIN
    assert (cascade.exit_depth(TEST) == 2).all()
    cascade.set_margin(0.3)
    np.testing.assert_array_equal(cascade.depth_costs_, lax)
    np.testing.assert_array_equal(cascade.exit_depth(TEST), depth)
    np.testing.assert_array_equal(loaded.depth_costs_, lax)


# -- other units -----------------------------------------------------------------------


def test_costs_of_parts_leave_idle_heads_out():
    costs = {"stages": [1, 2, 4], "heads": [0.5, 0.25]}
    cascade = fitted("CalexNet")
    cascade.set_params(costs=costs)
    np.testing.assert_allclose(with_exits_at(cascade, 1).depth_costs_, [1, 3.25, 7.25])
    np.testing.assert_allclose(with_exits_at(cascade).depth_costs_, [1, 3, 7])
    assert cascade.cost_reduction(TEST) == 0
    cascade.set_params(costs=[1, 2, 4])  # whose part the heads are is not said
    np.testing.assert_allclose(cascade.depth_costs_, [1, 2, 4])
    cascade.set_params(costs=None)


# -- where costs are read --------------------------------------------------------------


def test_curves_price_each_point_by_its_own_rule():
    cascade = fitted("SDN")
    curve = operating_curve(cascade, TEST, np.zeros(len(TEST), int), [0.5, np.inf])
    assert curve.flops_reduction[1] == 0
    cascade.set_operating_point(0.5)
    assert curve.flops_reduction[0] == pytest.approx(cascade.flops_reduction(TEST))
    cascade.set_calibrator(None)


def test_what_a_search_falls_back_on_costs_the_plain_network():
    dear = CascadeClassifier(
        branch=Columns(0, macs=300),
        final_estimator=Columns(3, macs=100),
        margin=0.05,
        cv=0.5,
        random_state=0,
    )
    search = MarginSearchCV(dear, max_accuracy_drop=0.05, margins=[-1.0, 0.0], cv=2)
    points, labels = fixed_rows(400, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        search.fit(points, labels)
    found = search.best_estimator_
    assert (found.exit_depth(points) == 1).all()
    np.testing.assert_array_equal(found.cost(points), 100)


def test_summary_and_card_say_what_it_costs(tmp_path):
    cascade = fixed_cascade(SharedThreshold(np.inf))
    assert "0 % fewer MACs" in cascade._repr_html_()
    cascade.save(tmp_path / "cascade")
    assert "0.0%" in (tmp_path / "cascade" / "README.md").read_text()
    loaded = sk_calex.load(tmp_path / "cascade", trusted=True)
    np.testing.assert_array_equal(loaded.depth_costs_, cascade.depth_costs_)


# -- "auto" ----------------------------------------------------------------------------


def dear_cascade(**params):
    params = {"max_accuracy_drop": 0.2} | params
    return CascadeClassifier(
        branch=Columns(0, macs=params.pop("macs", 99)),
        final_estimator=Columns(3, macs=100),
        cv=0.5,
        random_state=0,
        **params,
    )


def test_auto_takes_no_point_that_costs_more_than_the_network():
    """Nine rows in ten could exit at 99 % of the cost, and the tenth would pay both."""
    cascade = dear_cascade()
    with pytest.warns(
        CalibrationWarning, match="costs less than the network without branches"
    ):
        cascade.fit(*fixed_rows(400, 100, lost=0.02))
    assert np.isnan(cascade.margin_)
    path = cascade.margin_path_
    assert (path["mean_cost"][path["within"] & (path["exit_share"] > 0)] > 100).all()
    assert path["mean_cost"][path["exit_share"] == 0] == pytest.approx(100)
    np.testing.assert_array_equal(cascade.depth_costs_, [0, 100])
    cheap = dear_cascade(macs=1).fit(*fixed_rows(400, 100, lost=0.02))
    assert cheap.cost_reduction(fixed_rows(400, 100, lost=0.02)[0]) > 0.5


@settings(max_examples=25)
@given(
    macs=st.integers(1, 150),
    seed=st.integers(0, 1000),
    lost=st.sampled_from([0.0, 0.02, 0.05]),
    drop=st.sampled_from([0.0, 0.02, 0.1, 0.5]),
    rule=st.sampled_from(
        [None, SharedThreshold("auto"), SurvivorThresholdCalibrator("auto")]
    ),
)
def test_auto_never_costs_more_than_the_network_on_its_rows(
    macs, seed, lost, drop, rule
):
    points, labels = fixed_rows(120, seed, lost=lost)
    cascade = dear_cascade(macs=macs, max_accuracy_drop=drop, calibrator=rule)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        cascade.fit(points, labels)
    given_ = cascade.calibration_
    depth = cascade.calibrator_.depth(given_.answers)
    mean = np.average(cascade.depth_costs_[depth], weights=given_.weight)
    assert mean <= 100 * (1 + 1e-9)
    if (cascade.thresholds_ == np.inf).all():
        assert mean == 100


@pytest.mark.parametrize("name", [*MAKERS, *CHAINED])
def test_auto_of_every_method_costs_no_more_than_the_network(name):
    cascade = (MAKERS | CHAINED)[name]()
    cascade.set_params(**{cascade._knob_name: "auto"}, max_accuracy_drop=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        cascade.fit(X, Y)
    held = X[FIXED.test_fold == 0]
    assert cascade.cost(held).mean() <= PLAIN * (1 + 1e-9)


# -- the monitor -----------------------------------------------------------------------


def test_a_monitor_watches_the_first_stage_that_answers():
    cascade = with_exits_at(fitted("CalexNet"), 1)
    monitor = ExitMonitor(cascade, random_state=0).fit(TEST)
    assert monitor.watched_stage_ == 1
    by_prediction = ExitMonitor(cascade, random_state=0).fit(TEST)
    new = TEST[::-1].copy()
    monitor.update(new)
    by_prediction.update(cascade.predict_details(new))
    np.testing.assert_array_equal(monitor.statistic_, by_prediction.statistic_)
    again = ExitMonitor(cascade).load_state_dict(monitor.state_dict())
    assert again.watched_stage_ == 1
    old = monitor.state_dict()
    del old["watched_stage"]
    assert ExitMonitor(cascade).load_state_dict(old).watched_stage_ == 0
    cascade.set_calibrator(None)


def test_a_monitor_goes_on_where_later_exits_close_and_says_where_earlier_open():
    cascade = with_exits_at(fitted("CalexNet"), 1)
    monitor = ExitMonitor(cascade, random_state=0).fit(TEST)
    labels = with_exits_at(cascade).predict(TEST)
    np.testing.assert_array_equal(monitor.update_predict(TEST), labels)
    with pytest.raises(ValueError, match="monitor watches stage 1"):
        monitor.update(cascade.predict_details(TEST))
    with_exits_at(cascade, 0)
    with pytest.raises(ValueError, match="Fit the monitor again"):
        monitor.update_predict(TEST)
    assert monitor.n_seen_ == len(TEST)
    cascade.set_calibrator(None)


def test_a_monitor_watches_the_last_stage_where_nothing_exits():
    cascade = with_exits_at(fitted("CalexNet"))
    monitor = ExitMonitor(cascade, random_state=0).fit(TEST)
    assert monitor.watched_stage_ == 2
    monitor.update(TEST)
    np.testing.assert_array_equal(
        monitor.update_predict(TEST), cascade.backbone_.predict(TEST)
    )
    cascade.set_calibrator(None)
