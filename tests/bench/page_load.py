"""`python -m tests.bench.page_load`: the page under load: 30 visitors look on while one run trains and three generate.

The page is served as a user serves it, by `lrdiff app` in a process of its own. A visitor does what the page does by
itself: it asks every two seconds what the Runs and Rewards tabs show, and when an answer changes a part of the page to
which something listens, it asks for that too. Every twentieth second it opens the page anew. Every answer is timed; one
with an error, or none within ten seconds, counts as an error. The generations are asked to share the device with the
training, so that both really run meanwhile; by default they would wait for it.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.bench.result import write

EVERY = 2.0
LIMIT = 10.0
LAST = 60.0
"""How long after the end a last image may take, in seconds."""
KINDS = ("a look", "what changed", "the page anew")
COLUMNS = ("what is asked for", "answers", "median ms", "95 % ms", "slowest ms")
STEPS = 100_000
"""Of the training, which is stopped in the end: it must last as long as the visitors stay."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        kind: Of the request, one of `KINDS`.
        seconds: How long it took.
    """

    kind: str
    seconds: float


@dataclass
class Load:
    """What the visitors met.

    Attributes:
        answers: All of them.
        errors: What went wrong.
        images: Files that the generations wrote.
    """

    answers: list[Answer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    images: int = 0

    def seconds(self, *kinds: str) -> list[float]:
        """Return the times of the answers of some kinds, sorted."""
        return sorted(answer.seconds for answer in self.answers if answer.kind in kinds)


@dataclass(frozen=True)
class Page:
    """What the page does by itself.

    Attributes:
        ticks: The listeners of its timers.
        changes: The listeners of a change, by the component that changes.
    """

    ticks: list[dict[str, Any]]
    changes: Mapping[int, list[dict[str, Any]]]


def page_of(url: str) -> Page:
    """Read from the page what it asks for by itself."""
    config = httpx.get(f"{url}/config", trust_env=False, timeout=60).json()
    ticks: list[dict[str, Any]] = []
    changes: dict[int, list[dict[str, Any]]] = {}
    for listener in config["dependencies"]:
        for component, event in listener["targets"]:
            if event == "tick":
                ticks.append(listener)
            elif event == "change" and not listener["queue"] and listener["backend_fn"]:
                changes.setdefault(component, []).append(listener)
    return Page(ticks, changes)


def ask(load: Load, kind: str, request: Callable[..., httpx.Response], path: str, **body: Any) -> httpx.Response | None:
    """Send one request and note its time, and what went wrong. Returns the answer when it is one."""
    begin = time.monotonic()
    answer = None
    try:
        answer = request(path, **body)
        if answer.status_code != 200:
            load.errors.append(f"{answer.status_code}: {answer.text[:200]}")
            answer = None
    except httpx.HTTPError as error:
        load.errors.append(repr(error))
    load.answers.append(Answer(kind, time.monotonic() - begin))
    return answer


class Visitor:
    """A browser that shows the page: the values of its components, and who it is."""

    def __init__(self, client: httpx.Client, page: Page, load: Load, name: str) -> None:
        """Nothing is asked yet."""
        self.client, self.page, self.load, self.name = client, page, load, name
        self.values: dict[int, Any] = {}

    def open(self) -> None:
        """Ask for the page."""
        ask(self.load, KINDS[2], self.client.get, "/")

    def look(self) -> None:
        """Do what the page does every two seconds."""
        for tick in self.page.ticks:
            self._call(KINDS[0], tick)

    def _call(self, kind: str, listener: dict[str, Any]) -> None:
        words = [self.values.get(component) for component in listener["inputs"]]
        body = {"fn_index": listener["id"], "data": words, "session_hash": self.name}
        answer = ask(self.load, kind, self.client.post, "/gradio_api/run/predict", json=body)
        if answer is None:
            return
        changed: list[int] = []
        for component, value in zip(listener["outputs"], answer.json()["data"], strict=True):
            before = self.values.get(component)
            if isinstance(value, dict) and value.get("__type__") == "update":
                value = value.get("value", before)
            if value != before:
                self.values[component] = value
                changed.append(component)
        for follower in (follower for component in changed for follower in self.page.changes.get(component, [])):
            self._call(KINDS[1], follower)


def visit(url: str, number: int, end: float, load: Load, page: Page) -> None:
    """Be one visitor until `end`."""
    with httpx.Client(base_url=url, trust_env=False, timeout=LIMIT) as client:
        visitor = Visitor(client, page, load, f"visitor{number}")
        time.sleep(EVERY * number / 30)
        count = 0
        while time.monotonic() < end:
            begin = time.monotonic()
            if count % 10:
                visitor.look()
            else:
                visitor.open()
            count += 1
            time.sleep(max(0.0, EVERY - (time.monotonic() - begin)))


def generate(url: str, number: int, end: float, load: Load, wish: dict[str, Any]) -> None:
    """Ask for images, one after the other, until `end`."""
    from gradio_client import Client

    try:
        client = Client(url, verbose=False, download_files=False, httpx_kwargs={"timeout": LIMIT})
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
    page, end = page_of(url), time.monotonic() + seconds
    work: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        *((visit, (url, number, end, load, page)) for number in range(visitors)),
        *((generate, (url, number, end, load, wish)) for number in range(generators)),
    ]
    threads = [threading.Thread(target=act, args=arguments, daemon=True) for act, arguments in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    return load


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the page from a folder, as `lrdiff app` does, for the time of a `with` block. Yields its address."""
    command = [sys.executable, "-m", "app", "app", "--port", "0"]
    with (folder / "server.txt").open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield _address(folder / "server.txt", process)
    finally:
        process.terminate()
        process.wait(60)


def _address(output: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + LAST
    while process.poll() is None and time.monotonic() < deadline:
        found = re.search(r"http://[\d.]+:\d+", output.read_text(encoding="utf-8"))
        if found:
            return found[0]
        time.sleep(0.1)
    raise RuntimeError(f"the page did not open: {output.read_text(encoding='utf-8')}")


def main(arguments: Sequence[str]) -> int:
    """Serve a page, train on a shipped subject, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args(list(arguments))
    from app import example
    from app.jobs import Queue
    from app.site import Site

    with tempfile.TemporaryDirectory(prefix="lrdiff-load-") as home:
        folder = Path(home)
        queue = Queue(folder / "runs")
        order = example.order(Site(queue, folder / "outputs"))
        assert order is not None, "the example subjects are not installed"
        method, config, files = order
        config["optim"]["steps"] = STEPS
        with served(folder) as url:
            run = queue.submit(method, config, files)
            deadline = time.monotonic() + LAST * 3
            while not run.metrics():
                assert time.monotonic() < deadline, f"no training: {run.read()}"
                time.sleep(0.5)
            busy, first = os.getloadavg()[0], len(run.metrics())
            load = measure(url, options.seconds, 30, 3, {"steps": 10})
            lines = len(run.metrics()) - first
            queue.stop(queue.name(run))
            while run.read()["state"] == "running":
                time.sleep(0.5)
    rows = [_row(kind, load.seconds(kind)) for kind in KINDS] + [_row("all", load.seconds(*KINDS))]
    note = (
        f"{len(load.errors)} errors. 30 visitors, {options.seconds:.0f} s; one run trained ({lines} lines of metrics), "
        f"and three programs generated {load.images} images. Before it, with the training alone, {busy:.1f} processes "
        "wanted a core."
    )
    path = write("page_load", "python -m tests.bench.page_load", COLUMNS, rows, note, {"errors": load.errors[:20]})
    sys.stdout.write(f"{rows}\n{note}\n{path}\n")
    return bool(load.errors) or rows[-1][3] > 1000


def _row(kind: str, seconds: list[float]) -> list[Any]:
    """Return the name, the count, and median, 95th percentile and maximum in milliseconds of sorted times."""
    if not seconds:
        return [kind, 0, None, None, None]
    found = [statistics.median(seconds), seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))], seconds[-1]]
    return [kind, len(seconds), *(round(1000 * value) for value in found)]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
