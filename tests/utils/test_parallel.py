"""Results that cannot be loaded end in an error, whatever backend joblib has."""

import os

import joblib
import pytest
from joblib import Parallel, delayed
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from sk_calex import CascadeClassifier
from sk_calex.utils._parallel import for_workers, received


class Elsewhere(LogisticRegression):
    """Loads nowhere but in the process that trained it."""

    def __getstate__(self):
        return super().__getstate__() | {"process": os.getpid()}

    def __setstate__(self, state):
        if state.pop("process") != os.getpid() and "coef_" in state:
            raise TypeError("trained elsewhere")
        super().__setstate__(state)


def fitted(C):
    return Elsewhere(C=C).fit([[0.0], [1.0]], [0, 1])


def results(n_jobs=2):
    call = for_workers(fitted)
    return [received(x) for x in Parallel(n_jobs)(delayed(call)(C) for C in (1, 2))]


@pytest.mark.parametrize("backend", ["sequential", "threading"])
def test_results_of_the_same_process_are_not_pickled(backend):
    with joblib.parallel_config(backend):
        assert for_workers(fitted) is fitted
        assert [model.C for model in results()] == [1, 2]


@pytest.fixture(scope="module")
def dask():
    distributed = pytest.importorskip(
        "distributed", reason="Dask is not installed: see the extra 'distributed'"
    )
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        yield


@pytest.mark.usefixtures("dask")
def test_results_come_back_from_a_cluster():
    call = for_workers(sum)
    sums = Parallel(2)(delayed(call)([n, 1]) for n in range(3))
    assert [received(x) for x in sums] == [1, 2, 3]


@pytest.mark.usefixtures("dask")
def test_a_result_of_a_cluster_that_cannot_be_loaded_is_an_error():
    with pytest.raises(RuntimeError, match=r"TypeError: trained elsewhere.*versions"):
        results()


@pytest.mark.usefixtures("dask")
def test_a_search_on_a_cluster_ends_where_results_cannot_be_loaded():
    X, y = make_classification(80, random_state=0)
    cascade = CascadeClassifier(branch=Elsewhere(), cv=2, n_jobs=2, random_state=0)
    with pytest.raises(RuntimeError, match=r"cannot be loaded here.*trained elsewhere"):
        cascade.fit(X, y)
    margins = {"margin": [0.0, 0.1]}
    search = GridSearchCV(cascade, margins, cv=2, error_score="raise", n_jobs=2)
    with pytest.raises(RuntimeError, match=r"cannot be loaded here.*trained elsewhere"):
        search.fit(X, y)
