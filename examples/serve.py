"""A cascade behind HTTP: requests are answered in batches, and watched for drift.

    python examples/serve.py            # fits on digits, sends requests to itself
    python examples/serve.py --stay     # goes on serving, on --port

needs ``pip install "sk_calex[serve]"``. `create_app` is what to copy: it takes any
fitted cascade, or an `ExitRiskController` with its certificate, and an `ExitMonitor`.

POST /predict   the bytes of a PNG, JPEG or WebP file, or JSON {"samples": [...]}
GET /health     whether it answers, and whether the monitor has raised an alarm
GET /metrics    for Prometheus: requests, latency, depths, the monitor's statistic

Requests that arrive within a few milliseconds, or while the last batch is computed, are
answered together. What is bad about a request is found before it joins a batch, so that
it cannot spoil the others.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from PIL import Image
from sklearn.model_selection import PredefinedSplit
from torch import nn

from sk_calex import BranchClassifier, CascadeClassifier, ExitMonitor, FrozenBackbone
from sk_calex.datasets import load_digits_images

IMAGE_TYPES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
log = logging.getLogger("serve")


# -- what a request holds --------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What is accepted: samples of one shape, uint8 or float, so many, so large."""

    shape: tuple[int, ...]
    dtype: str = "uint8"
    max_bytes: int = 2_000_000
    max_samples: int = 64
    max_waiting: int = 1000


def refuse(status: int, why: str, **headers: str) -> HTTPException:
    return HTTPException(status, why, headers or None)


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes, whatever its headers say."""
    body, n_bytes = bytearray(), 0
    async for chunk in request.stream():
        n_bytes += len(chunk)
        if n_bytes <= limit:
            body += chunk
        # A client reads no answer before it has sent all, so some more is read.
        elif n_bytes > 10 * limit:
            break
    if n_bytes > limit:
        raise refuse(413, f"The body is longer than {limit:,} bytes.")
    return bytes(body)


def read_samples(body: bytes, kind: str, limits: Limits) -> np.ndarray:
    """Samples of shape (n, *shape): one image, or those of a JSON array."""
    if kind in IMAGE_TYPES:
        return read_image(body, IMAGE_TYPES[kind], limits)
    if kind == "application/json":
        return read_json(body, limits)
    accepted = ", ".join([*IMAGE_TYPES, "application/json"])
    raise refuse(415, f"The content-type is {kind!r}; accepted are {accepted}.")


def read_image(body: bytes, form: str, limits: Limits) -> np.ndarray:
    if limits.dtype != "uint8" or len(limits.shape) != 3 or limits.shape[0] != 3:
        raise refuse(415, f"Not a model of images: send JSON of shape {limits.shape}.")
    _, height, width = limits.shape
    try:
        with Image.open(io.BytesIO(body), formats=[form]) as image:
            size = image.size  # known before anything is decoded
            if size == (width, height):
                pixels = np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        raise refuse(422, f"The body is no {form} image: {error}") from error
    if size != (width, height):
        given = " x ".join(map(str, size))
        raise refuse(422, f"The image has {given} pixels, not {width} x {height}.")
    return pixels.transpose(2, 0, 1)[None]


def read_json(body: bytes, limits: Limits) -> np.ndarray:
    try:
        given = json.loads(body)["samples"]
        samples = np.asarray(given)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise refuse(
            422, f'The body is not {{"samples": [...]}}, an array of numbers: {error!r}'
        ) from error
    if samples.shape[1:] != limits.shape or len(samples) == 0:
        raise refuse(
            422,
            f"The samples have shape {samples.shape}, not (n, "
            f"{', '.join(map(str, limits.shape))}).",
        )
    if len(samples) > limits.max_samples:
        raise refuse(413, f"{len(samples)} samples; at most {limits.max_samples}.")
    whole = limits.dtype == "uint8"
    if samples.dtype.kind not in ("iu" if whole else "iuf"):
        raise refuse(
            422, f"The samples are of type {samples.dtype}, not {limits.dtype}."
        )
    if whole and (samples.min() < 0 or samples.max() > 255):
        raise refuse(422, "The samples have values outside of 0 to 255.")
    samples = samples.astype(limits.dtype)
    if not np.isfinite(samples).all():
        raise refuse(422, "The samples hold NaN or infinity.")
    return samples


# -- batches ---------------------------------------------------------------------------


class Busy(Exception):
    """Too many requests are waiting."""


class Batcher:
    """Answers requests together: up to `max_batch` samples, after `max_delay` seconds.

    The model runs in one thread of its own, one batch after another; what arrives
    meanwhile makes up the next batch.
    """

    def __init__(
        self, predict: Any, *, max_batch: int, max_delay: float, max_waiting: int
    ) -> None:
        self._predict, self._max_batch = predict, max_batch
        self._max_delay, self._max_waiting = max_delay, max_waiting
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[Any]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")

    async def submit(self, samples: np.ndarray) -> Any:
        """What `predict` returns for these samples, cut out of that for their batch."""
        if len(self._waiting) >= self._max_waiting:
            raise Busy
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((samples, future))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        try:
            while True:
                await self._arrived.wait()
                if sum(len(samples) for samples, _ in self._waiting) < self._max_batch:
                    await asyncio.sleep(self._max_delay)
                await self._answer(self._next_batch())
        finally:
            for _, future in self._waiting:
                future.cancel()
            self._thread.shutdown(wait=False)

    def _next_batch(self) -> list[tuple[np.ndarray, asyncio.Future[Any]]]:
        batch = [self._waiting.popleft()]
        n = len(batch[0][0])
        while self._waiting and n + len(self._waiting[0][0]) <= self._max_batch:
            batch.append(self._waiting.popleft())
            n += len(batch[-1][0])
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def _answer(
        self, batch: list[tuple[np.ndarray, asyncio.Future[Any]]]
    ) -> None:
        X = np.concatenate([samples for samples, _ in batch])
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self._predict, X)
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            for one in batch if len(batch) > 1 else []:  # the others shall not suffer
                await self._answer([one])
            return
        start = 0
        for samples, future in batch:
            if not future.done():  # a client may have gone
                future.set_result(answers[start : start + len(samples)])
            start += len(samples)


# -- metrics ---------------------------------------------------------------------------


@dataclass
class Metrics:
    """Counts since the start, in the text format of Prometheus."""

    requests: Counter[int] = field(default_factory=Counter)
    depths: Counter[int] = field(default_factory=Counter)
    latency: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0
    batches: int = 0
    statistic: float = 0.0
    alarm: bool = False

    def note_request(self, status: int, seconds: float) -> None:
        self.requests[status] += 1
        self.seconds += seconds
        self.latency[next((s for s in SECONDS if seconds <= s), np.inf)] += 1

    def text(self) -> str:
        lines = _series(
            *("requests_total", "counter", "Requests to /predict by HTTP status."),
            {f'{{status="{s}"}}': n for s, n in sorted(self.requests.items())},
        )
        buckets, total = {}, 0
        for bound in (*SECONDS, np.inf):
            total += self.latency[bound]
            label = "+Inf" if bound == np.inf else f"{bound:g}"
            buckets[f'_bucket{{le="{label}"}}'] = total
        buckets |= {"_sum": self.seconds, "_count": total}
        lines += _series(
            *("request_seconds", "histogram", "From the headers of a request on."),
            buckets,
        )
        lines += _series(
            *("answers_total", "counter", "Samples by the stage that answered."),
            {f'{{depth="{d}"}}': n for d, n in sorted(self.depths.items())},
        )
        lines += _series("batches_total", "counter", "Runs.", {"": self.batches})
        lines += _series(
            *("drift_statistic", "gauge", "Newest value of the monitor."),
            {"": self.statistic},
        )
        lines += _series(
            *("drift_alarm", "gauge", "1 once the monitor has raised an alarm."),
            {"": int(self.alarm)},
        )
        return "\n".join(lines) + "\n"


def _series(name: str, kind: str, what: str, values: dict[str, Any]) -> list[str]:
    name = f"sk_calex_{name}"
    head = [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
    return head + [f"{name}{labels} {value}" for labels, value in values.items()]


# -- the app ---------------------------------------------------------------------------


def create_app(
    cascade: Any,
    limits: Limits,
    *,
    monitor: Any = None,
    max_batch: int = 32,
    max_delay: float = 0.002,
) -> FastAPI:
    """An app that answers with a cascade; `monitor` watches it, if there is one."""
    metrics = Metrics()

    def predict(X: np.ndarray) -> list[dict[str, Any]]:
        said = cascade.predict_details(X)
        metrics.batches += 1
        metrics.depths.update(said.depth.tolist())
        if monitor is not None:
            metrics.alarm = monitor.update(said)
            metrics.statistic = float(monitor.statistic_[-1])
        cost = [None] * len(X) if said.cost is None else said.cost.tolist()
        columns = (said.labels.tolist(), said.probabilities.tolist())
        rows = zip(*columns, said.depth.tolist(), cost, strict=True)
        return [
            dict(zip(("label", "probabilities", "depth", "cost"), row, strict=True))
            for row in rows
        ]

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        app.state.batcher = Batcher(
            predict,
            max_batch=max_batch,
            max_delay=max_delay,
            max_waiting=limits.max_waiting,
        )
        task = asyncio.create_task(app.state.batcher.run())
        yield
        task.cancel()

    app = FastAPI(title="A cascade", lifespan=lifespan)

    async def answer(request: Request) -> list[dict[str, Any]]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await read_body(request, limits.max_bytes)
        # In another thread, as a long body would hold up everybody.
        samples = await asyncio.to_thread(read_samples, body, kind, limits)
        try:
            return await request.app.state.batcher.submit(samples)
        except Busy:
            why = "Too many requests are waiting."
            raise refuse(503, why, **{"Retry-After": "1"}) from None
        except Exception as error:
            log.exception("the model failed")
            raise refuse(500, "The model failed on these samples.") from error

    @app.post("/predict")
    async def predict_route(request: Request) -> JSONResponse:
        start, status = time.perf_counter(), 200
        try:
            return JSONResponse({"answers": await answer(request)})
        except HTTPException as error:
            status = error.status_code
            raise
        finally:
            metrics.note_request(status, time.perf_counter() - start)

    @app.get("/health")
    async def health_route() -> dict[str, Any]:
        return {"status": "ok", "model": type(cascade).__name__, "alarm": metrics.alarm}

    @app.get("/metrics")
    async def metrics_route() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    return app


@contextmanager
def serving(app: FastAPI, port: int = 0):
    """Serve in a thread while the ``with`` block runs; gives the address."""
    config = uvicorn.Config(app, "127.0.0.1", port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start; is the port free?")
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


# -- the example -----------------------------------------------------------------------


def main(argv=None):
    args = parse_args(argv)
    cascade, monitor, test = fit_on_digits(args)
    app = create_app(cascade, Limits(test.shape[1:]), monitor=monitor)
    if args.stay:
        uvicorn.run(app, host="127.0.0.1", port=args.port)
        return
    with serving(app) as address, httpx.Client(base_url=address) as client:
        print(client.get("/health").json())
        labels = ask_from_threads(address, test, n_clients=16)
        expected = cascade.predict(test)
        print(f"{len(labels)} answers, {np.mean(labels == expected):.0%} as by predict")
        bad = client.post(
            "/predict", content=b"no image", headers={"content-type": "image/png"}
        )
        print(f"bytes that are no image: {bad.status_code}, {bad.json()['detail']}")
        lines = client.get("/metrics").text.splitlines()
        print(
            "\n".join(line for line in lines if "_total{" in line or "drift_a" in line)
        )


def ask_from_threads(address, images, n_clients):
    """Send each image as a PNG file, from several clients at once."""

    def ask(rows):
        with httpx.Client(base_url=address, timeout=60) as client:
            return [one_label(client, images[i]) for i in rows]

    parts = [range(k, len(images), n_clients) for k in range(n_clients)]
    with ThreadPoolExecutor(n_clients) as pool:
        answered = list(pool.map(ask, parts))
    labels = np.empty(len(images), dtype=int)
    for rows, found in zip(parts, answered, strict=True):
        labels[list(rows)] = found
    return labels


def one_label(client, image):
    response = client.post(
        "/predict", content=as_png(image), headers={"content-type": "image/png"}
    )
    response.raise_for_status()
    return response.json()["answers"][0]["label"]


def as_png(image):
    """The bytes of a PNG file that holds an image of shape (3, h, w)."""
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, format="PNG")
    return file.getvalue()


def fit_on_digits(args):
    """A cascade on scikit-learn's digits, a monitor of it, and images to send."""
    digits = load_digits_images(noise=0, shift=0, copies=1)
    X, y, n = digits.data, digits.target, 300 if args.quick else None
    train, val, fresh = digits.train[:n], digits.val[:n], digits.test
    module = train_network(X[train], y[train], args)
    rows = np.concatenate([train, val])
    cascade = CascadeClassifier(
        FrozenBackbone(module, ["block1", "block2"]),
        branch=BranchClassifier("gap", max_iter=2 if args.quick else None),
        cv=PredefinedSplit(np.where(np.isin(rows, val), 0, -1)),
        random_state=args.seed,
    ).fit(X[rows], y[rows])
    reference, test = fresh[::2], fresh[1::2][:n]
    monitor = ExitMonitor(cascade, random_state=args.seed).fit(X[reference])
    return cascade, monitor, X[test[:64]] if args.quick else X[test]


def train_network(X, y, args):
    """Train a small network of three blocks."""
    torch.manual_seed(args.seed)  # initial weights, order of the images
    parts, before = OrderedDict(), 3
    for i, width in enumerate((16, 32, 64), 1):
        parts[f"block{i}"] = nn.Sequential(
            nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        before = width
    parts["out"] = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)
    )
    module = nn.Sequential(parts)
    X, y = torch.from_numpy(X) / 255, torch.from_numpy(y)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(1 if args.quick else 15):
        for rows in torch.randperm(len(X)).split(32):
            loss = nn.functional.cross_entropy(module(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module.eval()


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all that is random (default 0)")
    add("--quick", action="store_true", help="few rows, hardly trained: a smoke test")
    add("--stay", action="store_true", help="serve until it is interrupted")
    add("--port", type=int, default=8000, help="port for --stay (default 8000)")
    add("--output", type=Path, metavar="DIR", help="not used: it draws nothing")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
