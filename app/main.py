"""The web page: `build` makes it, `serve` shows it on this machine."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from app import api, text, watch
from app.form import FormError, Values
from app.jobs import Queue
from app.site import Site
from app.tabs.generate import GenerateTab, with_run
from app.tabs.runs import RunsTab
from app.tabs.train import TrainTab
from app.theme import CSS, theme
from lrdiff.errors import ConfigError
from lrdiff.png import writable

log = logging.getLogger(__name__)

MAX_UPLOAD = "50mb"
CACHE_SECONDS = (3600, 24 * 3600)
"""How often copies in the page's cache are looked through, and the age at which they go. Originals stay."""


def build(runs: Path = Path("runs"), outputs: Path = Path("outputs"), site: Site | None = None) -> gr.Blocks:
    """Make the page. Nothing is started and nothing is written.

    Args:
        runs: Folder of the run directories.
        outputs: Folder for generated images.
        site: The queue and folders to use instead.
    """
    site = site or Site(Queue(runs), outputs.resolve())
    with gr.Blocks(title=text.TITLE, analytics_enabled=False, delete_cache=CACHE_SECONDS) as page:
        # First, so that no listener of the page takes one of the names.
        api.publish(site)
        gr.HTML(f"<header class='masthead'><h1>{text.TITLE}</h1><p>{text.TAGLINE}</p></header>", padding=False)
        with gr.Tabs(selected="train") as tabs:
            with gr.Tab(text.TAB_TRAIN, id="train"):
                train = TrainTab(site)
            with gr.Tab(text.TAB_RUNS, id="runs"):
                runs_tab = RunsTab(site)
            with gr.Tab(text.TAB_GENERATE, id="generate") as generate_page:
                generate = GenerateTab(site)
        _connect(page, tabs, generate_page, train, runs_tab, generate)
    return page


def _connect(
    page: gr.Blocks, tabs: gr.Tabs, generate_page: gr.Tab, train: TrainTab, runs: RunsTab, generate: GenerateTab
) -> None:
    """Wire what crosses from one tab to another."""
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    adapter = generate.adapter

    def explain(values: Values) -> dict[Any, Any]:
        return train.explain(train.check(values))

    def start(values: Values) -> dict[Any, Any]:
        try:
            run = train.submit(values)
        except FormError as error:
            return train.explain(error.problems)
        name = run.path.name
        gr.Info(text.QUEUED.format(name=name))
        choices = watch.choices(train.site.queue)
        return {runs.picker: gr.update(choices=choices, value=name), tabs: gr.Tabs(selected="runs")}

    def use(name: str) -> dict[Any, Any]:
        parts = [adapter, generate.form.components["prompt"], generate.form.components["model"]]
        updates = with_run(generate, train.site.queue.find(name))
        return {**dict(zip(parts, updates, strict=True)), tabs: gr.Tabs(selected="generate")}

    train.start.click(explain, train.inputs, [train.problems, train.advanced], queue=False, **private)
    train.start.click(
        api.told(start),
        train.inputs,
        [runs.picker, tabs, train.problems, train.advanced],
        validator=train.form.validator(train.check),
        **private,
    )
    parts = [adapter, generate.form.components["prompt"], generate.form.components["model"], tabs]
    runs.use.click(api.told(use), runs.picker, parts, queue=False, **private)
    generate_page.select(generate.offer, adapter, adapter, queue=False, **private)
    page.load(generate.offer, adapter, adapter, queue=False, **private)
    page.load(runs.refresh, [runs.picker, runs.seen], runs.outputs, queue=False, **private)


def launch(page: gr.Blocks, site: Site, host: str, port: int) -> str:
    """Open the page on this machine and return its address; the caller closes it.

    Raises:
        ConfigError: The address is not one of this machine alone, or the port is taken.
        DataError: The folders of runs and images cannot be written.
    """
    if not is_loopback(host):
        raise ConfigError(text.NOT_LOOPBACK.format(host=host, port=port))
    for folder in (site.queue.root, site.outputs):
        writable(folder)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or free_port(host),
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            show_error=False,
            max_file_size=MAX_UPLOAD,
            allowed_paths=[str(site.queue.root), str(site.outputs)],
            footer_links=["api", "settings"],
            theme=theme(),
            css=CSS,
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=_names(host))]},
        )
    except OSError as error:
        raise ConfigError(text.PORT_TAKEN.format(port=port)) from error
    return url


def serve(host: str = "127.0.0.1", port: int = 7860) -> None:
    """Show the page until Ctrl-C, and carry out queued runs. Runs that are under way outlive it.

    Args:
        host: A loopback address.
        port: Port to listen on; 0 takes a free one.

    Raises:
        ConfigError: As `launch` does.
    """
    # One line for every request that gradio makes to itself is of use to nobody.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    site = Site(Queue(Path("runs")), Path("outputs").resolve())
    with tempfile.TemporaryDirectory(prefix="lrdiff-page-") as cache:
        # Uploads lie here, readable for nobody else, until the page is closed; runs have their own copies.
        os.environ["GRADIO_TEMP_DIR"] = cache
        page = build(site=site)
        url = launch(page, site, host, port)
        site.queue.start()
        log.info("%s", text.LISTENING.format(url=url))
        try:
            _sleep_until_asked()
            log.info("%s", text.CLOSING)
        finally:
            site.queue.close()
            page.close(verbose=False)


def _names(host: str) -> list[str]:
    """Return the names by which a browser may call this page.

    A page of another site can point a name of its own at this machine and then read what it is answered, as far as the
    browser knows from its own site; only the name gives it away. The bracket is how an IPv6 address begins.
    """
    return ["127.0.0.1", "localhost", "[", host]


def _sleep_until_asked() -> None:
    """Return at Ctrl-C or a request to terminate."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        asked.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port(host: str) -> int:
    """Return a port that nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
