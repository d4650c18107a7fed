"""`python -m tests.bench.page_load`: the page under load: 30 visitors look on while one run trains and three generate.

A visitor asks for the page once and then, as the page does by itself, every two seconds what the Runs and Rewards tabs
show. Every answer is timed; an answer with an error, or none within ten seconds, counts as an error. The generations
are asked to share the device with the training, so that both really run meanwhile; by default they would wait for it.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.bench.result import write

EVERY = 2.0
LIMIT = 10.0
LAST = 60.0
"""How long after the end a last image may take, in seconds."""
STEPS = 100_000
"""Of the training, which is stopped in the end: it must last as long as the visitors stay."""


@dataclass
class Load:
    """What the visitors met.

    Attributes:
        seconds: Time of each answer.
        errors: What went wrong.
        images: Files that the generations wrote.
    """

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    images: int = 0

    def quantile(self, share: float) -> float:
        """Return the time within which this share of the answers came."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def polls_of(url: str) -> list[dict[str, Any]]:
    """Return what the page sends every two seconds: the listeners of its timers, with empty inputs."""
    config = httpx.get(f"{url}/config", trust_env=False, timeout=60).json()
    listeners = [item for item in config["dependencies"] if any(event == "tick" for _, event in item["targets"])]
    return [{"fn_index": item["id"], "data": [None] * len(item["inputs"])} for item in listeners]


def ask(load: Load, request: Callable[..., httpx.Response], path: str, **body: Any) -> None:
    """Send one request and note its time, and what went wrong."""
    begin = time.monotonic()
    try:
        answer = request(path, **body)
        if answer.status_code != 200:
            load.errors.append(f"{answer.status_code}: {answer.text[:200]}")
    except httpx.HTTPError as error:
        load.errors.append(repr(error))
    load.seconds.append(time.monotonic() - begin)


def visit(url: str, number: int, end: float, load: Load, polls: list[dict[str, Any]]) -> None:
    """Be one visitor until `end`."""
    with httpx.Client(base_url=url, trust_env=False, timeout=LIMIT) as client:
        time.sleep(EVERY * number / 30)
        count = 0
        while time.monotonic() < end:
            begin = time.monotonic()
            if count % 10:
                for poll in polls:
                    ask(load, client.post, "/gradio_api/run/predict", json=poll | {"session_hash": f"visitor{number}"})
            else:
                ask(load, client.get, "/")
            count += 1
            time.sleep(max(0.0, EVERY - (time.monotonic() - begin)))


def generate(url: str, number: int, end: float, load: Load, wish: dict[str, Any]) -> None:
    """Ask for images, one after the other, until `end`."""
    from gradio_client import Client

    try:
        client = Client(url, verbose=False, download_files=False)
    except httpx.HTTPError as error:
        load.errors.append(f"no generation, since the page did not answer: {error!r}")
        return
    while time.monotonic() < end:
        job = client.submit(wish | {"seed": number}, True, api_name="/generate")
        while not job.done() and time.monotonic() < end + LAST:
            time.sleep(0.2)
        if job.done():
            error = job.exception()
            if error is not None:
                load.errors.append(repr(error))
                return
            load.images += len(job.result())
    client.close()


def measure(url: str, seconds: float, visitors: int, generators: int, wish: dict[str, Any]) -> Load:
    """Put the load on a page and return what was met."""
    url, load = url.rstrip("/"), Load()
    polls, end = polls_of(url), time.monotonic() + seconds
    work: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        *((visit, (url, number, end, load, polls)) for number in range(visitors)),
        *((generate, (url, number, end, load, wish)) for number in range(generators)),
    ]
    threads = [threading.Thread(target=act, args=arguments, daemon=True) for act, arguments in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    return load


def main(arguments: Sequence[str]) -> int:
    """Serve a page of its own, train on a shipped subject, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args(list(arguments))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from app import example
    from app import main as page_module
    from app.jobs import Queue
    from app.site import Site

    logging.getLogger("httpx").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="lrdiff-load-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "cache")
        site = Site(Queue(Path(folder) / "runs"), Path(folder) / "outputs")
        page = page_module.build(site=site)
        url = page_module.launch(page, site, "127.0.0.1", 0)
        order = example.order(site)
        assert order is not None, "the example subjects are not installed"
        method, config, files = order
        config["optim"]["steps"] = STEPS
        run = site.queue.submit(method, config, files)
        site.queue.start()
        load = measure(url, options.seconds, 30, 3, {"steps": 10})
        step = len(run.metrics())
        site.queue.stop(site.queue.name(run))
        site.queue.close()
        page.close(verbose=False)
    milliseconds = [1000 * statistics.median(load.seconds), 1000 * load.quantile(0.95), 1000 * max(load.seconds)]
    row = [30, len(load.seconds), len(load.errors), *(round(value) for value in milliseconds), load.images]
    columns = ["visitors", "answers", "errors", "median ms", "95 % ms", "slowest ms", "images meanwhile"]
    note = f"{options.seconds:.0f} s, one run training ({step} lines of metrics), three programs generating beside it."
    path = write("page_load", "python -m tests.bench.page_load", columns, [row], note, {"errors": load.errors[:20]})
    sys.stdout.write(f"{dict(zip(columns, row, strict=True))}\n{path}\n")
    return bool(load.errors) or load.quantile(0.95) > 1.0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
