"""The service of serve.py in replicas, behind Ray Serve.

    python examples/serve_ray.py --replicas 2

needs ``pip install "sk_calex[serve]" "ray[serve]"``. Each replica is a process with a
cascade, a batcher and counters of its own, made by the function that is given to
`ray.serve.ingress`; Ray shares the requests out, and restarts a replica that dies.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import httpx
import numpy as np
import ray
from ray import serve as ray_serve
from serve import Limits, ask_from_threads, create_app, fit_on_digits


def deployment(build_app, n_replicas):
    """What `ray.serve.run` takes: replicas of an app that each of them builds."""
    replica = ray_serve.ingress(build_app)()
    return ray_serve.deployment(replica, num_replicas=n_replicas).bind()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all that is random (default 0)")
    add("--quick", action="store_true", help="few rows, hardly trained: a smoke test")
    add("--replicas", type=int, default=2, help="processes that answer (default 2)")
    add("--port", type=int, default=8000, help="where to listen (default 8000)")
    add("--output", type=Path, metavar="DIR", help="not used: it draws nothing")
    args = parser.parse_args(argv)

    cascade, monitor, test = fit_on_digits(args)

    def build_app():  # by each replica, of what Ray has sent it
        return create_app(cascade, Limits(test.shape[1:]), monitor=monitor)

    ray.init(num_cpus=args.replicas, include_dashboard=False, log_to_driver=False)
    try:
        ray_serve.start(http_options={"host": "127.0.0.1", "port": args.port})
        ray_serve.run(deployment(build_app, args.replicas))
        address = f"http://127.0.0.1:{args.port}"
        print(httpx.get(f"{address}/health", timeout=60).json())
        labels = ask_from_threads(address, test, n_clients=16)
        expected = cascade.predict(test)
        print(f"{len(labels)} answers, {np.mean(labels == expected):.0%} as by predict")
    finally:
        ray_serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
