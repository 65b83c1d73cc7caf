"""The example of a service over a real socket: nothing is lost, nothing mixed up."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sk_calex import CascadePrediction

REASON = "the example needs the extra 'serve'"
httpx = pytest.importorskip("httpx", reason=REASON)
pytest.importorskip("fastapi", reason=REASON)
pytest.importorskip("uvicorn", reason=REASON)

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPE = (3, 8, 8)
N_CLIENTS = 16


@pytest.fixture(scope="module")
def serve():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        return importlib.import_module("serve")


class Echo:
    """In the place of a cascade: the label of an image is a number that it holds."""

    def __init__(self, broken=()):
        self.sizes, self.threads, self.broken = [], set(), set(broken)

    def predict_details(self, X):
        self.sizes.append(len(X))
        self.threads.add(threading.get_ident())
        labels = number_of(X)
        if self.broken & set(labels.tolist()):
            raise RuntimeError("this sample breaks the model")
        proba = np.tile([0.25, 0.75], (len(X), 1))
        depth = labels % 3
        return CascadePrediction(
            labels, proba, depth, depth * 10.0, labels % 2, proba[:, 1]
        )


def image(number):
    X = np.zeros(SHAPE, dtype=np.uint8)
    X[:, 0, 0], X[:, 0, 1] = divmod(number, 256)
    return X


def number_of(X):
    return X[:, 0, 0, 0].astype(int) * 256 + X[:, 0, 0, 1]


def as_file(X, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(X.transpose(1, 2, 0)).save(file, form, **options)
    return file.getvalue()


def send(client, body, kind="image/png"):
    return client.post("/predict", content=body, headers={"content-type": kind})


def send_json(client, samples):
    return send(client, json.dumps({"samples": samples}).encode(), "application/json")


@pytest.fixture
def running(serve):
    """An address, and the model behind it."""
    model = Echo()
    limits = serve.Limits(SHAPE, max_bytes=20_000, max_samples=4)
    with serve.serving(serve.create_app(model, limits, max_batch=8)) as address:
        yield address, model


@pytest.fixture
def client(running):
    with httpx.Client(base_url=running[0], timeout=60) as client:
        yield client


def test_sixteen_clients_get_their_own_answers_and_bad_images_an_error(running):
    address, model = running
    bad = {
        0: (b"no image at all", "image/png", 422),
        1: (as_file(image(7))[:60], "image/png", 422),
        2: (as_file(image(7)), "text/plain", 415),
        3: (b"x" * 30_000, "image/png", 413),
        4: (as_file(np.zeros((3, 9, 8), np.uint8)), "image/png", 422),
    }
    n_each, answers = 25, {}

    def ask(k):
        with httpx.Client(base_url=address, timeout=60) as client:
            for i in range(n_each):
                number = k * n_each + i
                if number % 5 == 3:
                    body, kind, status = bad[i % len(bad)]
                    assert send(client, body, kind).status_code == status
                    continue
                (said,) = send(client, as_file(image(number))).json()["answers"]
                answers[number] = said

    with ThreadPoolExecutor(N_CLIENTS) as pool:
        list(pool.map(ask, range(N_CLIENTS)))
    good = [number for number in range(N_CLIENTS * n_each) if number % 5 != 3]
    assert sorted(answers) == good
    for number, said in answers.items():
        assert said == {
            "label": number,
            "probabilities": [0.25, 0.75],
            "depth": number % 3,
            "cost": number % 3 * 10.0,
        }
    assert sum(model.sizes) == len(good)
    assert max(model.sizes) <= 8
    assert len(model.threads) == 1
    text = httpx.get(f"{address}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    depths = Counter(number % 3 for number in good)
    for depth, n in depths.items():
        assert values[f'sk_calex_answers_total{{depth="{depth}"}}'] == str(n)
    assert values['sk_calex_requests_total{status="200"}'] == str(len(good))
    assert values["sk_calex_request_seconds_count"] == str(N_CLIENTS * n_each)
    assert values['sk_calex_request_seconds_bucket{le="+Inf"}'] == str(
        N_CLIENTS * n_each
    )
    assert values["sk_calex_batches_total"] == str(len(model.sizes))


def test_json_arrays_hold_several_samples(client):
    said = send_json(client, [image(5).tolist(), image(999).tolist()]).json()
    assert [each["label"] for each in said["answers"]] == [5, 999]


def test_images_may_be_of_three_types(client):
    for form, kind in (("PNG", "image/png"), ("WEBP", "image/webp; q=1")):
        options = {"lossless": True} if form == "WEBP" else {}
        body = as_file(image(5), form, **options)
        assert send(client, body, kind).json()["answers"][0]["label"] == 5
    assert send(client, as_file(image(0), "JPEG"), "image/jpeg").status_code == 200


BAD_JSON = {
    "no json": (b"{", 422, "no array|is not"),
    "another key": (b'{"images": []}', 422, "samples"),
    "no samples": (b'{"samples": []}', 422, "shape"),
    "ragged": (b'{"samples": [[1], [1, 2]]}', 422, "not"),
    "another shape": (b'{"samples": [[1, 2]]}', 422, r"not \(n, 3, 8, 8\)"),
    "words": (b'{"samples": "all of them"}', 422, "shape"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_is_an_error_that_says_why(client, name):
    body, status, why = BAD_JSON[name]
    response = send(client, body, "application/json")
    assert response.status_code == status
    assert re.search(why, response.json()["detail"])


def test_values_and_numbers_of_samples_are_limited(client):
    too_large = image(1).astype(int) + 300
    assert send_json(client, [too_large.tolist()]).status_code == 422
    assert send_json(client, [(image(1) / 2).tolist()]).status_code == 422
    assert send_json(client, [image(1).tolist()] * 5).status_code == 413


def test_floats_must_be_finite(serve):
    app = serve.create_app(Echo(), serve.Limits((2,), "float32"))
    with serve.serving(app) as address, httpx.Client(base_url=address) as client:
        body = b'{"samples": [[1.5, NaN]]}'
        response = send(client, body, "application/json")
        assert response.status_code == 422
        assert "NaN" in response.json()["detail"]
        assert send(client, as_file(image(1))).status_code == 415


def test_a_sample_that_breaks_the_model_harms_no_other(serve):
    model = Echo(broken=[13])
    app = serve.create_app(model, serve.Limits(SHAPE), max_batch=64, max_delay=0.05)
    with serve.serving(app) as address, ThreadPoolExecutor(N_CLIENTS) as pool:

        def ask(number):
            with httpx.Client(base_url=address, timeout=60) as client:
                response = send(client, as_file(image(number)))
                if response.status_code != 200:
                    return response.status_code
                return response.json()["answers"][0]["label"]

        numbers = list(range(5, 21))
        answers = list(pool.map(ask, numbers))
    assert answers == [500 if number == 13 else number for number in numbers]


def test_too_many_waiting_requests_are_sent_away(serve):
    inside, leave = threading.Event(), threading.Event()

    class Slow(Echo):
        def predict_details(self, X):
            inside.set()
            assert leave.wait(60)
            return super().predict_details(X)

    limits = serve.Limits(SHAPE, max_waiting=1)
    app = serve.create_app(Slow(), limits, max_delay=0)
    with serve.serving(app) as address, ThreadPoolExecutor(4) as pool:

        def ask(number):
            with httpx.Client(base_url=address, timeout=60) as client:
                return send(client, as_file(image(number)))

        try:
            first = pool.submit(ask, 1)
            assert inside.wait(60)
            others = [pool.submit(ask, 2), pool.submit(ask, 3), pool.submit(ask, 4)]
            while sum(each.done() for each in others) < 2:  # all but one are refused
                threading.Event().wait(0.01)
        finally:
            leave.set()
        found = [each.result() for each in others]
    assert first.result().json()["answers"][0]["label"] == 1
    refused = [each for each in found if each.status_code == 503]
    assert len(refused) == 2
    assert refused[0].headers["retry-after"] == "1"


def test_the_monitor_sees_every_sample_once(serve):
    class Monitor:
        seen = 0

        def update(self, said):
            self.seen += len(said)
            self.statistic_ = np.array([0.5, float(self.seen)])
            return self.seen >= 3

    monitor = Monitor()
    app = serve.create_app(Echo(), serve.Limits(SHAPE), monitor=monitor)
    with serve.serving(app) as address, httpx.Client(base_url=address) as client:
        assert client.get("/health").json() == {
            "status": "ok",
            "model": "Echo",
            "alarm": False,
        }
        send_json(client, [image(k).tolist() for k in range(3)])
        assert monitor.seen == 3
        assert client.get("/health").json()["alarm"]
        assert "\nsk_calex_drift_statistic 3.0\n" in client.get("/metrics").text
        assert "\nsk_calex_drift_alarm 1\n" in client.get("/metrics").text


def test_the_example_serves_a_cascade(serve, capsys):
    serve.main(["--quick"])
    printed = capsys.readouterr().out
    assert "64 answers" in printed
    assert "bytes that are no image: 422" in printed
    assert 'sk_calex_requests_total{status="200"} 64' in printed
    assert "sk_calex_drift_alarm" in printed


def test_the_example_for_ray_serve_answers_like_the_cascade():
    """In a process of its own, as Ray starts and stops others."""
    pytest.importorskip("ray.serve", reason="this example needs ray[serve]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "serve_ray.py", "--quick", "--replicas=1"]
    done = subprocess.run(
        [*command, f"--port={port}"],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "64 answers, 100% as by predict" in done.stdout
