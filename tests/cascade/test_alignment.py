from math import exp, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_calex import effective_sample_size, exit_probability, survivor_weights

lists = {"min_size": 1, "max_size": 20}
probabilities = st.floats(0, 1, allow_subnormal=False)
positive = st.floats(0.01, 100)


def slow_exit(score, threshold, bandwidth):
    """The sigmoid of METHODS, for one sample."""
    if bandwidth == 0:
        return 1.0 if score >= threshold else 0.0
    if threshold == inf:
        return 0.0
    return 1 / (1 + exp(-(score - threshold) / bandwidth))


# -- exit_probability ------------------------------------------------------------------


@pytest.mark.parametrize("bandwidth", [0, 0.01, 0.1, 0.3, 10])
def test_exit_probability_is_the_sigmoid_of_the_definition(bandwidth):
    rng = np.random.default_rng(0)
    scores = rng.random(50)
    thresholds = rng.choice([0.3, 0.6, 0.9, inf], 50)
    slow = [slow_exit(*st, bandwidth) for st in zip(scores, thresholds, strict=True)]
    found = exit_probability(scores, thresholds, bandwidth=bandwidth)
    np.testing.assert_allclose(found, slow, rtol=1e-12, atol=1e-15)


def test_the_bandwidth_is_a_tenth_by_default():
    found = exit_probability([0.9], [0.7])
    np.testing.assert_allclose(found, [slow_exit(0.9, 0.7, 0.1)])


@given(
    st.lists(st.tuples(probabilities, probabilities | st.just(inf)), **lists),
    st.floats(0, 1e6),
)
def test_exit_probability_is_a_probability(pairs, bandwidth):
    scores, thresholds = np.array(pairs).T
    found = exit_probability(scores, thresholds, bandwidth=bandwidth)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[thresholds == inf] == 0).all()
    assert (found[scores > thresholds] >= 0.5).all()
    assert (found[scores < thresholds] <= 0.5).all()


def test_a_class_that_always_exits_exits_for_sure():
    assert exit_probability([0.1], [-inf]).tolist() == [1]
    assert exit_probability([0.1], [-inf], bandwidth=0).tolist() == [1]


def test_a_narrow_sigmoid_is_the_hard_decision():
    scores = np.array([0.2, 0.7 - 1e-6, 0.7 + 1e-6, 0.9])
    thresholds = np.full(4, 0.7)
    hard = exit_probability(scores, thresholds, bandwidth=0)
    assert hard.tolist() == [0, 0, 1, 1]
    for bandwidth in (1e-8, 1e-200, 1e-310):
        soft = exit_probability(scores, thresholds, bandwidth=bandwidth)
        np.testing.assert_allclose(soft, hard, rtol=0, atol=1e-15)


def test_a_score_at_its_threshold_exits():
    assert exit_probability([0.7], [0.7], bandwidth=0).tolist() == [1]
    assert exit_probability([0.7], [0.7], bandwidth=0.1).tolist() == [0.5]


@pytest.mark.parametrize("bandwidth", [-0.1, inf, float("nan")])
def test_a_bad_bandwidth_is_refused(bandwidth):
    with pytest.raises(ValueError, match=f"bandwidth={bandwidth}"):
        exit_probability([0.5], [0.5], bandwidth=bandwidth)


@pytest.mark.parametrize("thresholds", [0.5, [0.5], [[0.5], [0.5]]])
def test_scores_and_thresholds_are_one_a_sample(thresholds):
    with pytest.raises(ValueError, match=r"scores and thresholds .* shapes \(2,\)"):
        exit_probability([0.5, 0.6], thresholds)


# -- survivor_weights ------------------------------------------------------------------


@pytest.mark.parametrize("bandwidth", [0, 0.1])
@pytest.mark.parametrize("mixture", [0.0, 0.3, 1.0])
def test_weights_of_the_third_branch_are_those_of_the_definition(bandwidth, mixture):
    n, n_classes = 40, 3
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.3, 1, (2, n))
    predicted = rng.integers(0, n_classes, (2, n))
    tau = np.array([[0.6, 0.9, inf], [0.5, 0.7, 0.8]])

    survival = np.ones(n)
    for s, c, t in zip(scores, predicted, tau, strict=True):
        survival *= 1 - exit_probability(s, t[c], bandwidth=bandwidth)
    found = survivor_weights(survival, mixture=mixture)

    slow = []
    for i in range(n):
        w = 1.0
        for j in range(2):
            w *= 1 - slow_exit(scores[j, i], tau[j, predicted[j, i]], bandwidth)
        slow.append(w)
    mean = sum(slow) / n
    slow = [(1 - mixture) + mixture * w / mean for w in slow]
    np.testing.assert_allclose(found, slow, rtol=1e-12)


def test_everyone_reaches_the_first_branch():
    assert survivor_weights(np.ones(5)).tolist() == [1] * 5


def test_hard_survival_is_the_subset():
    alive = np.array([True, False, True, False, False])
    np.testing.assert_allclose(survivor_weights(alive), alive * 5 / 2)


@given(st.lists(probabilities, **lists), st.floats(0, 1))
def test_weights_have_mean_one(survival, mixture):
    weights = survivor_weights(survival, mixture=mixture)
    np.testing.assert_allclose(weights.mean(), 1)
    assert (weights >= (1 - mixture) * (1 - 1e-12)).all()
    assert (np.diff(weights[np.argsort(survival, kind="stable")]) >= 0).all()


@given(st.lists(st.tuples(probabilities, positive), **lists), st.floats(0, 1))
def test_sample_weights_multiply_weights_of_mean_one(pairs, mixture):
    survival, weight = np.array(pairs).T
    found = survivor_weights(survival, mixture=mixture, sample_weight=weight)
    np.testing.assert_allclose(found.sum(), weight.sum())
    ratio = found / weight
    by_survival = np.argsort(survival, kind="stable")
    assert (np.diff(ratio[by_survival]) >= -1e-9).all()


def test_an_integer_sample_weight_is_a_repetition():
    survival, weight = np.array([0.9, 0.2, 0.5]), np.array([2, 3, 0])
    once = survivor_weights(survival, mixture=0.7, sample_weight=weight)
    repeated = survivor_weights(np.repeat(survival, weight), mixture=0.7)
    np.testing.assert_allclose(once[:2], [2 * repeated[0], 3 * repeated[2]])
    assert once[2] == 0


def test_no_mixture_forgets_the_survivors():
    found = survivor_weights([0.1, 0.9], mixture=0, sample_weight=[2, 3])
    assert found.tolist() == [2, 3]


def test_without_survivors_all_samples_count_alike():
    assert survivor_weights([0.0, 0.0]).tolist() == [1, 1]
    assert survivor_weights([0.0, 0.0], sample_weight=[2, 0]).tolist() == [2, 0]
    # The only survivor is absent.
    assert survivor_weights([0.0, 1.0], sample_weight=[1, 0]).tolist() == [1, 0]


def test_input_is_left_alone():
    survival, weight = np.array([0.5, 1.0]), np.array([1.0, 2.0])
    survival.setflags(write=False)
    weight.setflags(write=False)
    found = survivor_weights(survival, sample_weight=weight)
    np.testing.assert_allclose(found, [0.6, 2.4])


@pytest.mark.parametrize("mixture", [-0.1, 1.1, float("nan")])
def test_a_bad_mixture_is_refused(mixture):
    with pytest.raises(ValueError, match=f"mixture={mixture}"):
        survivor_weights([0.5], mixture=mixture)


@pytest.mark.parametrize(
    "survival", [[], 0.5, [[0.5]], [-0.1, 0.5], [0.5, 1.1], [0.5, float("nan")]]
)
def test_survival_is_a_probability(survival):
    with pytest.raises(ValueError, match=r"survival must hold .* in \[0, 1\]"):
        survivor_weights(survival)


BAD_WEIGHTS = [[0, 0], [1, -1], [1, inf], [1, float("nan")], [[1, 1]], []]


@pytest.mark.parametrize("weight", [*BAD_WEIGHTS, [1], 1])
def test_bad_sample_weights_are_refused(weight):
    with pytest.raises(ValueError, match=r"^sample_weight must hold one finite"):
        survivor_weights([0.5, 0.5], sample_weight=weight)


# -- effective_sample_size -------------------------------------------------------------


@given(st.lists(positive, **lists), st.floats(1e-200, 1e200))
def test_effective_sample_size_is_that_of_the_definition(weights, scale):
    slow = sum(weights) ** 2 / sum(w * w for w in weights)
    found = effective_sample_size(np.array(weights) * scale)
    np.testing.assert_allclose(found, slow)
    assert 1 - 1e-9 <= found <= len(weights) * (1 + 1e-9)


def test_equal_weights_count_fully_and_absent_samples_not_at_all():
    assert effective_sample_size([0.2] * 7) == pytest.approx(7)
    assert effective_sample_size([3, 0, 3, 0]) == 2
    assert effective_sample_size([0, 5, 0]) == 1


@pytest.mark.parametrize("weights", BAD_WEIGHTS)
def test_weights_without_a_size_are_refused(weights):
    with pytest.raises(ValueError, match=r"^weights must hold one finite"):
        effective_sample_size(weights)
