"""One run that gives all a cascade says, and runs over batches that come one by one."""

import copy
import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sk_calex import CascadeClassifier, CascadePrediction, ExitRiskController
from sk_calex.baselines import SDNClassifier
from tests._fixed_cascade import fixed_cascade, rows
from tests._quick_cascade import FIXED, TEST, X, Y, cascade, on_images, tiny_backbone

FIELDS = ("labels", "probabilities", "depth", "cost")


@pytest.fixture(scope="module")
def staged():
    return on_images().fit(X, Y)


def sdn(**params):
    return SDNClassifier(
        head="gap", max_iter=4, solver="lbfgs", random_state=0, cv=FIXED, **params
    )


def same(a, b):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def joined(predictions):
    predictions = list(predictions)
    parts = {
        name: np.concatenate([getattr(said, name) for said in predictions])
        for name in (*FIELDS, "first_predicted", "first_confidence")
    }
    return CascadePrediction(**parts)


MAKERS = {
    "CalexNet, samples": (lambda: on_images(), False),
    "CalexNet, features": (lambda: cascade(), True),
    "SDN, samples": (lambda: sdn(backbone=tiny_backbone()), False),
    "SDN, features": (lambda: sdn(input="features"), True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_details_are_what_the_single_methods_return(name):
    make, on_features = MAKERS[name]
    train, test = X, TEST
    if on_features:
        backbone = tiny_backbone().fit(X)
        train, test = backbone.transform(X), backbone.transform(TEST)
    fitted = make().fit(train, Y)
    said = fitted.predict_details(test)
    assert isinstance(said, CascadePrediction)
    assert len(said) == len(test)
    np.testing.assert_array_equal(said.labels, fitted.predict(test))
    np.testing.assert_array_equal(said.probabilities, fitted.predict_proba(test))
    np.testing.assert_array_equal(said.depth, fitted.exit_depth(test))
    np.testing.assert_array_equal(said.cost, fitted.cost(test))
    first = fitted.stage_probabilities(test)[0]
    np.testing.assert_array_equal(said.first_predicted, first.argmax(axis=1))
    np.testing.assert_allclose(said.first_confidence, first.max(axis=1), rtol=1e-5)


def test_details_are_of_one_run(staged, monkeypatch):
    ran = []
    answer = type(staged.branches_[0]).answer_logits

    def counted(branch, features):
        ran.append(len(features))
        return answer(branch, features)

    monkeypatch.setattr(type(staged.branches_[0]), "answer_logits", counted)
    said = staged.predict_details(TEST)
    assert ran == [len(TEST), int((said.depth >= 1).sum())]


def test_cost_is_none_where_it_is_unknown():
    features = tiny_backbone().fit(X).transform(X)
    fitted = cascade().fit(features, Y)
    fitted.layout_ = replace(fitted.layout_, stage_macs=None)
    assert fitted.predict_details(features).cost is None
    with pytest.raises(ValueError, match="MACs of the backbone's stages are unknown"):
        fitted.cost(features)


def test_cost_is_in_the_unit_of_costs(staged):
    priced = copy.copy(staged).set_params(costs=[1.0, 2.0, 5.0])
    said = priced.predict_details(TEST)
    np.testing.assert_array_equal(said.cost, np.array([1.0, 2.0, 5.0])[said.depth])


def test_details_of_a_controller_are_those_of_its_cascade():
    fitted = fixed_cascade()
    certified, labels = rows(2000, seed=1, lost=0.001)
    safe = ExitRiskController(fitted, max_risk=0.05).fit(certified, labels)
    given, _ = rows(100, seed=2)
    same(safe.predict_details(given), safe.best_estimator_.predict_details(given))
    batches = (given[i : i + 30] for i in range(0, 100, 30))
    same(joined(safe.predict_iter(batches)), safe.predict_details(given))


# -- batches that come one by one ------------------------------------------------------


class Stream(IterableDataset):
    """Samples with labels, one after another."""

    def __iter__(self):
        yield from zip(torch.from_numpy(TEST), range(len(TEST)), strict=True)


PAIRS = TensorDataset(torch.from_numpy(TEST), torch.arange(len(TEST)))
BATCHES = {
    "arrays": lambda: [TEST[:40], TEST[40:]],
    "generator": lambda: (TEST[i : i + 7] for i in range(0, len(TEST), 7)),
    "tensors": lambda: torch.from_numpy(TEST).split(16),
    "pairs": lambda: [(TEST[:40], np.arange(40)), (TEST[40:], np.arange(50))],
    "loader": lambda: DataLoader(torch.from_numpy(TEST), batch_size=16),
    "loader of pairs": lambda: DataLoader(PAIRS, batch_size=16),
    "loader of a stream": lambda: DataLoader(Stream(), batch_size=16),
    "loader of items": lambda: DataLoader(PAIRS, batch_size=16, collate_fn=list),
    "stream": Stream,
    "Dataset": lambda: PAIRS,
}


@pytest.mark.parametrize("form", BATCHES)
def test_batches_of_every_form_give_what_one_run_gives(staged, form):
    found = joined(staged.predict_iter(BATCHES[form]()))
    same(found, staged.predict_details(TEST))


def test_features_come_in_batches_too():
    features = tiny_backbone().fit(X).transform(X)
    fitted = cascade().fit(features, Y)
    batches = [(features[:100], Y[:100]), (features[100:], Y[100:])]
    same(joined(fitted.predict_iter(batches)), fitted.predict_details(features))


def test_datasets_are_cut_into_batches_without_global_random_numbers(staged):
    state = torch.random.get_rng_state()
    sizes = [len(said) for said in staged.predict_iter(Stream(), batch_size=40)]
    assert sizes == [40, 40, 10]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.fixture
def earlier_objects_left_alone():
    """Spare collections the objects of other tests, which they would all go over."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("earlier_objects_left_alone")
def test_nothing_is_kept_of_batches_that_are_done(staged):
    made, most = [], 0

    def alive():
        gc.collect()
        return sum(ref() is not None for ref in made)

    def batch(i):
        made.append(weakref.ref(rows := TEST[i : i + 3].copy()))
        return rows

    def batches():
        nonlocal most
        for i in range(30):
            most = max(most, alive())
            yield batch(i)

    n = 0
    for said in staged.predict_iter(batches()):
        made.append(weakref.ref(said))
        assert alive() == 1  # the result that the caller holds
        n += 2
        assert len(made) == n  # no batch was asked for ahead of time
        del said
    assert most == 0
    assert len(made) == 60


def test_a_bad_batch_is_named_and_those_before_it_are_answered(staged):
    bad = TEST[:5].copy()
    bad[2] = np.nan
    answers = staged.predict_iter([TEST[:5], bad])
    same(next(answers), staged.predict_details(TEST[:5]))
    with pytest.raises(ValueError, match="NaN") as caught:
        next(answers)
    assert caught.value.__notes__ == [
        "This was batch 1 of predict_iter, counted from 0."
    ]


@pytest.mark.parametrize("whole", [TEST, torch.from_numpy(TEST), {"x": TEST}, "x.png"])
def test_one_array_is_refused_at_once(staged, whole):
    with pytest.raises(TypeError, match="predict_iter takes batches"):
        staged.predict_iter(whole)


def test_what_cannot_be_iterated_over_is_refused_at_once(staged):
    with pytest.raises(TypeError, match="batches=3 cannot be iterated over"):
        staged.predict_iter(3)


def test_an_unfitted_cascade_says_so_at_once():
    with pytest.raises(NotFittedError):
        CascadeClassifier().predict_iter([TEST])
    with pytest.raises(NotFittedError):
        CascadeClassifier().predict_details(TEST)
