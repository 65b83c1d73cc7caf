"""Whatever the stages say: what always holds of exit rules."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from sk_calex.calibration import StageAnswer, StageTable, SurvivorThresholdCalibrator
from sk_calex.policies import (
    EntropyThreshold,
    LearnedGate,
    OptimalStopping,
    Oracle,
    OwnGate,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
    first_exits,
)

numbers = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0, -np.inf, np.inf])
simple = st.one_of(
    st.builds(SharedThreshold, numbers, score=st.sampled_from(["confidence", "gap"])),
    st.builds(EntropyThreshold, numbers),
    st.builds(Patience, st.integers(0, 5)),
    st.builds(OwnGate, numbers),
)
with_statistics = st.one_of(
    st.builds(
        SurvivorThresholdCalibrator,
        st.floats(-0.5, 0.9),
        min_support=st.sampled_from([0, 1, 5]),
        calibrate_on=st.sampled_from(["survivors", "all"]),
    ),
    st.builds(Quota, st.floats(0.1, 10)),
    st.builds(LearnedGate, st.floats(0, 1)),
    st.builds(RegretPriced, st.floats(0, 2)),
    st.builds(OptimalStopping, st.floats(0, 2)),
)
rules = simple | with_statistics


@st.composite
def answers(draw):
    """Answers, some of them tied, that tell the codes more or less; and the codes."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n_stages, n = draw(st.integers(2, 5)), draw(st.integers(1, 40))
    n_classes = draw(st.integers(2, 4))
    y = rng.integers(n_classes, size=n)
    counts = rng.integers(1, draw(st.sampled_from([3, 30])), (n_stages, n, n_classes))
    counts += draw(st.integers(0, 10)) * np.eye(n_classes, dtype=int)[y]
    proba = counts / counts.sum(axis=-1, keepdims=True)
    return proba, rng.integers(4, size=(n_stages, n)) / 3, y


def tabled(proba, gates):
    """A table as of a method with a gate of its own at every branch."""
    table = StageTable.empty(*proba.shape)
    for k, stage in enumerate(proba[:-1]):
        table.put(k, slice(None), StageAnswer(stage, gate=gates[k]))
    table.put(len(proba) - 1, slice(None), StageAnswer(proba[-1]))
    return table


def fitted(rule, table, y):
    return clone(rule).fit(table, y, costs=np.arange(1, table.n_stages + 1))


def staged(rule, proba, gates):
    """Depth of samples that really leave on the way, as in a cascade's run."""
    depth = np.full(proba.shape[1], len(proba) - 1)
    alive, said = np.arange(proba.shape[1]), None
    for k, stage in enumerate(proba[:-1]):
        if len(alive) == 0:
            break
        said = StageAnswer(stage[alive], said, gate=gates[k, alive])
        exits = rule.exits(k, said)
        depth[alive[exits]] = k
        on = np.flatnonzero(~exits)
        alive, said = alive[on], said.keep(on)
    return depth


@settings(max_examples=60)
@given(data=answers(), rule=rules)
def test_a_table_and_a_staged_run_agree(data, rule):
    proba, gates, y = data
    table = tabled(proba, gates)
    rule = fitted(rule, table, y)
    depth = rule.depth(table)
    np.testing.assert_array_equal(staged(rule, proba, gates), depth)
    np.testing.assert_array_equal(first_exits(rule, table), depth)


@settings(max_examples=40)
@given(data=answers(), rule=rules, seed=st.integers(0, 1000))
def test_samples_in_another_order_exit_where_they_did(data, rule, seed):
    proba, gates, y = data
    table = tabled(proba, gates)
    rule = fitted(rule, table, y)
    rows = np.random.default_rng(seed).permutation(len(y))
    np.testing.assert_array_equal(rule.depth(table.take(rows)), rule.depth(table)[rows])


@settings(max_examples=60)
@given(data=answers(), rule=simple, more=st.floats(0, 1) | st.just(np.inf))
def test_a_stricter_number_never_moves_an_exit_earlier(data, rule, more):
    proba, gates, y = data
    table = tabled(proba, gates)
    before = fitted(rule, table, y).depth(table)
    value = getattr(rule, rule.knob)
    if isinstance(rule, Patience):
        strict = value + int(min(more, 1) * 3)
    elif isinstance(rule, EntropyThreshold):
        assume(not (value == more == np.inf))
        strict = value - more
    else:
        assume(not (value == -np.inf and more == np.inf))
        strict = value + more
    rule = clone(rule).set_params(**{rule.knob: strict})
    assert (fitted(rule, table, y).depth(table) >= before).all()


@settings(max_examples=40)
@given(
    data=answers(),
    least=st.sampled_from(
        [(LearnedGate(1.0), 0.5), (RegretPriced(0.1), 0.7), (Quota(3.0), 0.5)]
    ),
)
def test_a_laxer_number_lets_more_out_of_the_first_branch(data, least):
    """Of later ones not always: other samples get there."""
    proba, gates, y = data
    table, (rule, lax) = tabled(proba, gates), least
    strict = fitted(rule, table, y).depth(table) == 0
    lax = clone(rule).set_params(**{rule.knob: lax})
    assert (fitted(lax, table, y).depth(table) == 0)[strict].all()


@settings(max_examples=40)
@given(data=answers(), rule=rules)
def test_no_rule_beats_the_oracle(data, rule):
    proba, gates, y = data
    table = tabled(proba, gates)
    right, every = table.predicted == y, np.arange(len(y))
    depth = fitted(rule, table, y).depth(table)
    best = Oracle().depth(table, y)
    assert (right[best, every] >= right[depth, every]).all()
    # Nor at lower cost, where the rule is right at all.
    assert (best <= depth)[right[depth, every]].all()


@settings(max_examples=40)
@given(data=answers(), decay=st.floats(0.1, 10))
def test_a_quota_is_filled_up_to_ties(data, decay):
    """Its places are taken, and nobody but a tie of the last one exits beyond them."""
    proba, gates, y = data
    table = tabled(proba, gates)
    depth = fitted(Quota(decay), table, y).depth(table)
    shares = decay ** np.arange(len(proba), dtype=float)
    places = np.floor(shares / shares.sum() * len(y) + 1e-9).astype(int)
    for k in range(len(proba) - 1):
        reaching, out = depth >= k, depth == k
        scores = np.sort(table.confidence[k][out])
        assert out.sum() >= min(places[k], reaching.sum())
        if out.sum() > places[k]:
            # Without the least confident ones the places are not taken.
            assert (scores > scores[0]).sum() < places[k]


@settings(max_examples=40)
@given(data=answers(), price=st.floats(0, 2))
def test_a_price_pays_on_the_samples_that_set_it(data, price):
    """At every branch what exits saves at least what it loses."""
    proba, gates, y = data
    table = tabled(proba, gates)
    costs = np.arange(1, len(proba) + 1)
    depth = fitted(RegretPriced(price), table, y).depth(table)
    right = (table.predicted == y).astype(int)
    for k in range(len(proba) - 1):
        out = depth == k
        lost = (right[-1] - right[k])[out].sum()
        assert price * (1 - costs[k] / costs[-1]) * out.sum() >= lost - 1e-9
