from hypothesis import given
from hypothesis import strategies as st

from sk_calex.model_selection._risk_control._paired_test import (
    disagreement_p_value,
    drop_bound,
    drop_p_value,
)

drops = st.floats(-0.9, 0.9)
errors = st.sampled_from([0.001, 0.01, 0.2])


@st.composite
def counts(draw, spare=1):
    """Lost, gained and all rows; `spare` of them neither."""
    lost, gained = draw(st.integers(0, 300)), draw(st.integers(0, 300))
    return lost, gained, lost + gained + draw(st.integers(spare, 2000))


@given(counts(), drops, errors)
def test_p_value_lies_between_its_error_and_one(given_counts, drop, error):
    assert error <= drop_p_value(*given_counts, drop, error) <= 1


@given(counts(), drops, errors)
def test_another_lost_row_never_lowers_the_p_value(given_counts, drop, error):
    lost, gained, n = given_counts
    before = drop_p_value(lost, gained, n, drop, error)
    assert drop_p_value(lost + 1, gained, n, drop, error) >= before - 1e-12


@given(counts(spare=0), drops, errors)
def test_a_lost_row_in_place_of_a_gained_one_never_lowers_it(given_counts, drop, error):
    lost, gained, n = given_counts
    if gained:
        before = drop_p_value(lost, gained, n, drop, error)
        after = drop_p_value(lost + 1, gained - 1, n, drop, error)
        assert after >= before - 1e-12


@given(counts(), drops, st.floats(0, 0.9), errors)
def test_a_larger_drop_allowed_never_raises_it(given_counts, drop, more, error):
    larger = min(drop + more, 0.95)
    assert (
        drop_p_value(*given_counts, larger, error)
        <= drop_p_value(*given_counts, drop, error) + 1e-12
    )


@given(counts(), st.sampled_from([0.02, 0.1, 0.3]))
def test_bound_grows_with_each_lost_row(given_counts, error):
    lost, gained, n = given_counts
    bound = drop_bound(lost, gained, n, error)
    assert (lost - gained) / n < bound <= 1
    assert drop_bound(lost + 1, gained, n, error) >= bound - 1e-12


@given(st.integers(1, 3000), st.data())
def test_another_disagreement_never_lowers_its_p_value(n, data):
    k = data.draw(st.integers(0, n - 1))
    risk = data.draw(st.floats(0.001, 0.9))
    before = disagreement_p_value(k, n, risk)
    assert before <= disagreement_p_value(k + 1, n, risk) <= 1 + 1e-12
