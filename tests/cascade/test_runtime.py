"""One runtime, two ways in: staged execution against cached features."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from sk_calex import FrozenBackbone
from sk_calex.branches._as_branch import probabilities_of
from sk_calex.cascade._runtime import cached_sources, run_cascade, tabulate
from sk_calex.policies import ClassThresholds, SharedThreshold
from tests._cascade_models import (
    STAGE_MACS,
    TAPS,
    flat_cascade,
    images,
    small_branch,
    tiny_backbone,
    tiny_net,
)

X, Y = images(240)
TEST, TEST_Y = images(90, seed=1)


@pytest.fixture(scope="module")
def staged():
    return flat_cascade(
        tiny_backbone(), branch=small_branch(), min_support=3, random_state=0
    ).fit(X, Y)


@pytest.fixture(scope="module")
def cached():
    features = tiny_backbone().fit(X).transform(X)
    return flat_cascade(
        input="features", branch=small_branch(), min_support=3, random_state=0
    ).fit(features, Y)


@pytest.fixture(scope="module")
def features():
    return tiny_backbone().fit(X).transform(TEST)


@pytest.fixture(autouse=True)
def original_thresholds(staged, cached):
    yield
    for cascade in (staged, cached):
        cascade.backbone_ and cascade.backbone_.set_params(batch_size=256)
        cascade.set_margin(-0.15)


def same(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("margin", [-0.5, -0.15, 0.0, 0.2, 0.9])
def test_staged_is_vectorised_depth_by_depth(staged, cached, features, margin):
    staged.set_margin(margin), cached.set_margin(margin)
    labels, depth = staged.predict(TEST, return_depth=True)
    same((labels, depth), cached.predict(features, return_depth=True))
    for k in range(3):
        np.testing.assert_allclose(
            staged.predict_proba(TEST)[depth == k],
            cached.predict_proba(features)[depth == k],
            rtol=1e-4,
            atol=1e-6,
        )


def test_the_samples_it_was_calibrated_on_do_not_flip(staged, cached):
    # Their scores are the thresholds: the last bits of a float would show here.
    on_train = tiny_backbone().fit(X).transform(X)
    for margin in np.linspace(-0.4, 0.6, 21):
        staged.set_margin(margin), cached.set_margin(margin)
        vectorised = cached.predict(on_train, return_depth=True)
        same(staged.predict(X, return_depth=True), vectorised)


def test_only_survivors_go_on(staged):
    staged.set_margin(0.3)
    depth = staged.exit_depth(TEST)
    seen = {name: [] for name in ("stem", "block1", "block2")}
    net = staged.backbone_.module
    hooks = [
        # On the activations: convolutions run as folded copies.
        getattr(net, name)[2].register_forward_hook(
            lambda _m, x, _o, name=name: seen[name].append(len(x[0]))
        )
        for name in seen
    ]
    staged.predict(TEST)
    for hook in hooks:
        hook.remove()
    survivors = [np.sum(depth >= k) for k in range(3)]
    assert len(TEST) == survivors[0] > survivors[1] >= survivors[2] > 0
    assert [sum(rows) for rows in seen.values()] == survivors


def test_a_stage_that_nobody_reaches_is_not_run(staged):
    staged.calibrator_.thresholds_ = np.full_like(staged.thresholds_, -np.inf)
    ran = []
    hook = staged.backbone_.module.block1[2].register_forward_hook(
        lambda *_: ran.append(1)
    )
    assert (staged.exit_depth(TEST) == 0).all()
    hook.remove()
    assert not ran


def test_infinite_thresholds_are_the_backbone(staged):
    staged.calibrator_.thresholds_ = np.full_like(staged.thresholds_, np.inf)
    labels, depth = staged.predict(TEST, return_depth=True)
    np.testing.assert_array_equal(labels, staged.backbone_.predict(TEST))
    assert (depth == 2).all()
    np.testing.assert_allclose(
        staged.predict_proba(TEST), staged.backbone_.predict_proba(TEST), rtol=1e-4
    )


def test_minus_infinity_is_the_first_branch(staged, features):
    staged.calibrator_.thresholds_ = np.full_like(staged.thresholds_, -np.inf)
    labels, depth = staged.predict(TEST, return_depth=True)
    block = staged.layout_.block(features, 0)
    np.testing.assert_array_equal(labels, staged.branches_[0].predict(block))
    assert (depth == 0).all()


@settings(max_examples=15)
@given(
    size=st.integers(1, 40),
    margin=st.sampled_from([-0.2, 0.0, 0.3]),
    order=st.permutations(range(24)),
)
def test_batches_and_order_do_not_matter(staged, size, margin, order):
    staged.set_margin(margin)
    staged.backbone_.set_params(batch_size=256)
    labels, depth = staged.predict(TEST[:24], return_depth=True)
    staged.backbone_.set_params(batch_size=size)
    rows = np.array(order)
    same(
        staged.predict(TEST[:24][rows], return_depth=True), (labels[rows], depth[rows])
    )


def test_every_form_of_samples_gives_the_same(staged):
    expected = staged.predict(TEST, return_depth=True)
    tensor = torch.from_numpy(TEST)
    for form in (tensor, TensorDataset(tensor), TEST.astype(np.float64), list(TEST)):
        same(staged.predict(form, return_depth=True), expected)


def test_running_changes_no_weight_buffer_or_flag(staged):
    net = staged.backbone_.module
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    assert any(flags)  # the user left it in training mode
    state = torch.random.get_rng_state()
    staged.predict(TEST)
    assert [module.training for module in net.modules()] == flags
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.random.get_rng_state(), state)


def test_cost_by_hand(staged):
    staged.calibrator_.thresholds_ = np.full_like(staged.thresholds_, 0.6)
    heads = [branch.macs_ for branch in staged.branches_]
    expected = [
        STAGE_MACS[0] + heads[0],
        sum(STAGE_MACS[:2]) + sum(heads),
        sum(STAGE_MACS) + sum(heads),
    ]
    np.testing.assert_array_equal(staged.depth_costs_, expected)
    depth = staged.exit_depth(TEST)
    np.testing.assert_array_equal(staged.cost(TEST), np.array(expected)[depth])
    saved = 1 - np.mean(staged.cost(TEST)) / sum(STAGE_MACS)
    assert staged.flops_reduction(TEST) == pytest.approx(saved)
    assert (np.diff(staged.depth_costs_) > 0).all()
    staged.calibrator_.thresholds_ = np.full_like(staged.thresholds_, np.inf)
    assert staged.flops_reduction(TEST) == 0  # nobody can exit, so that heads rest
    # Somebody might, and did not: the heads are paid for.
    staged.calibrator_.thresholds_ = np.full_like(staged.thresholds_, 1.0)
    assert staged.flops_reduction(TEST) == pytest.approx(-sum(heads) / sum(STAGE_MACS))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_features_of_low_precision_agree_with_live_ones(dtype):
    backbone = tiny_backbone(dtype=dtype)
    live = flat_cascade(backbone, branch=small_branch(), random_state=0)
    live.fit(X, Y).set_margin(0.1)
    stored = flat_cascade(input="features", branch=small_branch(), random_state=0).fit(
        backbone.fit(X).transform(X), Y
    )
    stored.set_margin(0.1)
    half = live.backbone_.transform(TEST)
    assert half.nbytes < 0.51 * 4 * np.prod(half.shape)
    same(live.predict(TEST, return_depth=True), stored.predict(half, return_depth=True))


def test_explicit_stages_run_alike(staged):
    net = tiny_net()
    stages = nn.Sequential()
    for name, part in net.named_children():
        stages.add_module(name, part)
    backbone = FrozenBackbone(stages, TAPS, pool=4, device="cpu")
    explicit = flat_cascade(
        backbone, branch=small_branch(), min_support=3, random_state=0
    ).fit(X, Y)
    explicit.set_margin(staged.margin)
    same(
        explicit.predict(TEST, return_depth=True),
        staged.predict(TEST, return_depth=True),
    )


def test_logits_that_are_not_finite_never_exit(staged):
    broken = TEST.copy()
    broken[3] = np.inf
    with pytest.raises(ValueError, match="X contains NaN or infinity"):
        staged.predict(broken)
    staged.calibrator_.thresholds_ = np.full_like(staged.thresholds_, 0.6)
    with torch.no_grad():
        staged.branches_[0]._fused.classifier.bias[0] = torch.nan
    with pytest.raises(ValueError, match="logits of BranchClassifier"):
        staged.predict(TEST)
    staged.branches_[0]._set_head(staged.branches_[0].head_)


class Fixed:
    """A classifier of given probabilities that has seen only some of the classes."""

    def __init__(self, classes, proba):
        self.classes_, self.proba = np.array(classes), np.array(proba)

    def predict_proba(self, X):
        return np.broadcast_to(self.proba, (len(X), len(self.proba)))


def test_classes_that_a_branch_never_saw_have_probability_zero():
    answer = probabilities_of(Fixed([0, 2], [0.3, 0.7]), n_classes=4)
    np.testing.assert_array_equal(
        answer(torch.zeros(2, 3)), [[0.3, 0, 0.7, 0], [0.3, 0, 0.7, 0]]
    )
    with pytest.raises(ValueError, match="probabilities of Fixed"):
        probabilities_of(Fixed([0, 1], [np.nan, 1]), 2)(torch.zeros(2, 3))


def test_run_and_table_against_a_loop(cached, features):
    answers, n = cached._answers(), len(features)
    table = tabulate(cached_sources(features, cached.layout_), answers, n, 3)
    scores, predicted = table.confidence, table.predicted
    for size, margin in product((1, 7, 1000), (-0.1, 0.2)):
        policy = ClassThresholds(cached.thresholds_at(margin))
        sources = cached_sources(features, cached.layout_, size)
        proba, depth = run_cascade(sources, answers, policy, n, 3)
        for i in range(n):
            k = 0
            while k < 2 and scores[k, i] < policy.thresholds[k, predicted[k, i]]:
                k += 1
            assert depth[i] == k
            assert proba[i].argmax() == predicted[k, i]
            assert proba[i].max() == pytest.approx(scores[k, i], rel=1e-5)


def test_an_error_leaves_neither_inference_mode_nor_eval_mode_behind(staged):
    net = staged.backbone_.module
    flags = [module.training for module in net.modules()]

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = net.block1[2].register_forward_hook(interrupt)
    staged.calibrator_.thresholds_ = np.full_like(staged.thresholds_, np.inf)
    # `kept` holds the traceback, and with it the frames of the failed call.
    with pytest.raises(KeyboardInterrupt) as kept:
        staged.predict(TEST)
    hook.remove()
    assert not torch.is_inference_mode_enabled()
    assert [module.training for module in net.modules()] == flags
    assert kept.traceback


def test_datasets_are_read_outside_of_inference_mode(staged):
    class Watching(TensorDataset):
        def __getitem__(self, index):
            assert not torch.is_inference_mode_enabled()
            return super().__getitem__(index)

    watched = Watching(torch.from_numpy(TEST))
    same(
        staged.predict(watched, return_depth=True),
        staged.predict(TEST, return_depth=True),
    )


def test_the_rule_is_read_once(staged):
    """A rule that is exchanged during a run decides only the next one."""
    never = SharedThreshold(np.inf).fit(*_two_stages(3))
    first = staged.calibrator_

    class Exchanges:
        def exits(self, branch, said):
            staged.calibrator_ = never
            return np.full(len(said.predicted), branch == 1)

    staged.calibrator_ = Exchanges()
    depth = staged.exit_depth(TEST)
    assert (depth == 1).all()
    assert (staged.exit_depth(TEST) == 2).all()
    staged.calibrator_ = first


def _two_stages(n_classes):
    proba = np.full((3, 2, n_classes), 1 / n_classes)
    return proba, np.zeros(2, dtype=int)
