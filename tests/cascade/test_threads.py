"""Many threads ask one cascade, the first time included."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import joblib
import numpy as np
import pytest

import sk_calex
from sk_calex.baselines import SDNClassifier
from tests._cascade_models import tiny_net
from tests._quick_cascade import FIXED, TEST, X, Y, on_images, tiny_backbone

N_THREADS = 8


def sdn():
    return SDNClassifier(
        tiny_backbone(),
        head="gap",
        max_iter=4,
        solver="lbfgs",
        random_state=0,
        cv=FIXED,
    )


def by_joblib(cascade, folder):
    joblib.dump(cascade, folder / "cascade.joblib")
    return lambda: joblib.load(folder / "cascade.joblib")


def by_save(cascade, folder):
    cascade.save(folder / "saved")
    return lambda: sk_calex.load(folder / "saved", backbone=tiny_net())


#: What saves a cascade, and returns a function that loads it.
SAVED = {
    "fit": lambda cascade, _: lambda: cascade,
    "pickle": lambda cascade, _: lambda: pickle.loads(pickle.dumps(cascade)),
    "cloudpickle": lambda cascade, _: lambda: pickle.loads(cloudpickle.dumps(cascade)),
    "joblib": by_joblib,
    "save": by_save,
}


@pytest.fixture(scope="module", params=[on_images, sdn], ids=["CalexNet", "SDN"])
def fitted(request):
    return request.param().fit(X, Y)


def ask_at_once(calls):
    """Results of calls that start together, each in a thread of its own."""
    together = threading.Barrier(len(calls))

    def call(function):
        together.wait(60)
        return function()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


@pytest.mark.parametrize("how", SAVED)
def test_first_calls_of_many_threads_agree(fitted, tmp_path, how):
    load = SAVED[how](fitted, tmp_path)
    twin = load()
    part = len(TEST) // N_THREADS
    rows = [slice(i * part, (i + 1) * part) for i in range(N_THREADS)]
    answers = ask_at_once([lambda r=r: twin.predict_details(TEST[r]) for r in rows])
    for r, said in zip(rows, answers, strict=True):
        expected = fitted.predict_details(TEST[r])
        np.testing.assert_array_equal(said.labels, expected.labels)
        np.testing.assert_array_equal(said.depth, expected.depth)
        np.testing.assert_allclose(said.probabilities, expected.probabilities, 1e-5)
    if how != "fit":
        assert [m.training for m in twin.backbone_.module.modules()] == [
            m.training for m in fitted.backbone_.module.modules()
        ]


def test_threads_cut_the_stages_once(fitted, monkeypatch):
    twin = pickle.loads(pickle.dumps(fitted))
    runner, cuts = type(twin.backbone_.runner()), []
    cut_again = runner._cut_again

    def counted(self):
        cuts.append(1)
        return cut_again(self)

    monkeypatch.setattr(runner, "_cut_again", counted)
    ask_at_once([lambda: twin.predict(TEST[:3])] * N_THREADS)
    assert len(cuts) == 1


def test_settings_may_change_between_calls_of_other_threads(fitted):
    twin = pickle.loads(pickle.dumps(fitted))
    expected = fitted.predict(TEST[:12])
    stop = threading.Event()

    def change():
        size = 0
        while not stop.is_set():
            size = size % 5 + 1
            twin.backbone_.set_params(batch_size=size)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        answers = ask_at_once([lambda: twin.predict(TEST[:12])] * 4)
    finally:
        stop.set()
        thread.join()
    for labels in answers:
        np.testing.assert_array_equal(labels, expected)
