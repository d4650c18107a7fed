"""The web page: `build` makes it, `serve` shows it on this machine."""

from __future__ import annotations

import importlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from app import api, estimate, example, text, text_attention, text_auth, text_rewards, text_verify, verifying
from app.accounts import Accounts
from app.auth import Gate
from app.first_page import FirstPage
from app.form import FormError, Values
from app.jobs import Queue
from app.reports import report_route
from app.site import Site
from app.tabs.attention import AttentionTab
from app.tabs.generate import GenerateTab
from app.tabs.heads import HeadsTab, is_head
from app.tabs.models import ModelsTab
from app.tabs.parts import PRIVATE, QUIET
from app.tabs.rewards import METHOD, RewardsTab
from app.tabs.runs import RunsTab
from app.tabs.train import TrainTab
from app.tabs.verify import VerifyTab
from app.theme import CSS, HEAD, theme
from app.told import told
from lrdiff.errors import ConfigError
from lrdiff.png import writable

log = logging.getLogger(__name__)

MAX_UPLOAD = 50 * 2**20
MAX_REQUEST = MAX_UPLOAD + 2**20
"""A file, and what is written around it."""
SWITCH_SECONDS = 0.0005
"""How long a thread that computes may keep Python from one that answers a visitor; Python's own 5 ms come up several
times in an answer, once for every image that is being drawn."""
PORTS_TRIED = 5
"""A free port may be taken by another program before the page listens there."""
DRAWING = ("lrdiff.generate", "lrdiff.backbones.unet")
CACHE_SECONDS = (3600, 24 * 3600)
"""How often copies in the page's cache are looked through, and the age at which they go. Originals stay."""


def build(
    runs: Path = Path("runs"), outputs: Path = Path("outputs"), site: Site | None = None, has_users: bool = False
) -> gr.Blocks:
    """Make the page. Nothing is started and nothing is written.

    Args:
        runs: Folder of the run directories.
        outputs: Folder for generated images.
        site: The queue and folders to use instead.
        has_users: Offer to log out.
    """
    site = site or Site(Queue(runs), outputs.resolve())
    with gr.Blocks(title=text.TITLE, analytics_enabled=False, delete_cache=CACHE_SECONDS) as page:
        # First, so that no listener of the page takes one of the names.
        api.publish(site)
        leave = f"<form method='post' action='/logout'><button>{text_auth.LOG_OUT}</button></form>" if has_users else ""
        gr.HTML(f"<header class='masthead'><h1>{text.TITLE}</h1><p>{text.TAGLINE}</p>{leave}</header>", padding=False)
        with gr.Tabs(selected="train", overflow_behavior="wrap") as tabs:
            with gr.Tab(text.TAB_TRAIN, id="train"):
                train = TrainTab(site)
            with gr.Tab(text.TAB_RUNS, id="runs"):
                runs_tab = RunsTab(site)
            with gr.Tab(text.TAB_GENERATE, id="generate") as generate_page:
                generate = GenerateTab(site)
            with gr.Tab(text.TAB_HEADS, id="heads") as heads_page:
                heads = HeadsTab(site)
            with gr.Tab(text.TAB_REWARDS, id="rewards") as rewards_page:
                rewards = RewardsTab(site)
            with gr.Tab(text.TAB_ATTENTION, id="attention") as attention_page:
                attention = AttentionTab(site, train.settings)
            with gr.Tab(text.TAB_VERIFY, id="verify") as verify_page:
                verify = VerifyTab(site)
            with gr.Tab(text.TAB_MODELS, id="models") as models_page:
                models = ModelsTab(site)
        _connect(page, tabs, generate_page, train, runs_tab, generate)
        _connect_use(tabs, runs_tab, generate, heads)
        _connect_rewards(page, tabs, rewards_page, generate, rewards)
        _connect_repeat(tabs, runs_tab, train, rewards)
        _connect_verify(tabs, generate, verify)
        _connect_attention(tabs, attention_page, train, runs_tab, attention)
        for tab, part in ((heads_page, heads), (verify_page, verify), (models_page, models)):
            tab.select(part.offer, None, part.offered, **QUIET)
        heads_page.select(told(heads.first), heads.asked, heads.picture, api_visibility="private")
    return page


def _connect(
    page: gr.Blocks, tabs: gr.Tabs, generate_page: gr.Tab, train: TrainTab, runs: RunsTab, generate: GenerateTab
) -> None:
    """Wire what crosses from one tab to another."""

    def explain(values: Values) -> dict[Any, Any]:
        return train.explain(train.check(values))

    def start(values: Values) -> dict[Any, Any]:
        try:
            run = train.submit(values)
        except FormError as error:
            return train.explain(error.problems)
        name = train.site.queue.name(run)
        gr.Info(text.QUEUED.format(name=name))
        return {runs.picker: gr.update(value=name), tabs: gr.Tabs(selected="runs")}

    train.start.click(explain, train.inputs, [train.problems, train.settings.advanced], **QUIET)
    train.start.click(
        told(start),
        train.inputs,
        [runs.picker, tabs, train.problems, train.settings.advanced],
        validator=train.form.validator(train.check),
        **PRIVATE,
    )
    generate_page.select(generate.offer, generate.looked_at, generate.offered, **QUIET)
    page.load(generate.offer, generate.looked_at, generate.offered, **QUIET)
    page.load(train.foresee, train.inputs, train.foreseen, **QUIET)
    page.load(runs.refresh, runs.looked_at, runs.outputs, **QUIET)


def _connect_use(tabs: gr.Tabs, runs: RunsTab, generate: GenerateTab, heads: HeadsTab) -> None:
    """Let one button take what a run made to the page that shows it."""

    def use(name: str) -> dict[Any, Any]:
        run = runs.site.queue.find(name)
        if is_head(run):
            return {**heads.with_run(run), tabs: gr.Tabs(selected="heads")}
        return {**generate.with_run(run), tabs: gr.Tabs(selected="generate")}

    runs.use.click(told(use), runs.picker, [*generate.used, *heads.offered, tabs], **QUIET)


def _connect_verify(tabs: gr.Tabs, generate: GenerateTab, verify: VerifyTab) -> None:
    """Let one button judge the image that was just made, and another draw the next one with the example mark."""

    def hand_over(files: Any, number: int) -> dict[Any, Any]:
        return {verify.file: generate.picked(files, number), tabs: gr.Tabs(selected="verify")}

    generate.verify.click(told(hand_over), [generate.gallery, generate.shown], [verify.file, tabs], **QUIET).success(
        verify.offer, None, verify.offered, **QUIET
    ).success(verify.judge, verify.asked, verify.answer, **PRIVATE)

    def try_example() -> dict[Any, Any]:
        ready = verifying.example(verify.site)
        gr.Info(text_verify.EXAMPLE_READY.format(id=ready.key.id))
        return {**generate.with_mark(ready.decoder), tabs: gr.Tabs(selected="generate")}

    verify.example.click(told(try_example), None, [generate.decoder, tabs], **QUIET)


def _connect_repeat(tabs: gr.Tabs, runs: RunsTab, train: TrainTab, rewards: RewardsTab) -> None:
    """Show the settings of a run on the page that trains its method."""

    def repeat(name: str) -> dict[Any, Any]:
        run = train.site.queue.find(name)
        page, shown = ("rewards", rewards) if run.read()["method"] == METHOD else ("train", train)
        updates = shown.with_run(run)
        gr.Info((text_rewards.REPEATED if shown is rewards else text.REPEATED).format(name=name))
        return {**updates, tabs: gr.Tabs(selected=page)}

    outputs = [*train.inputs, *rewards.inputs, tabs]
    runs.repeat.click(told(repeat), runs.picker, outputs, **QUIET)


def _connect_rewards(
    page: gr.Blocks, tabs: gr.Tabs, rewards_page: gr.Tab, generate: GenerateTab, rewards: RewardsTab
) -> None:
    """Start runs towards rewards, and take what came of them to the Generate page."""

    def start(values: Values) -> dict[Any, Any]:
        try:
            run = rewards.submit(values)
        except FormError as error:
            return dict(zip(rewards.explained, rewards.explain(error.problems), strict=True))
        name = rewards.site.queue.name(run)
        gr.Info(text.QUEUED.format(name=name))
        return {rewards.run.name: gr.update(choices=rewards.run.choices(), value=name, visible=True)}

    def use(name: str, strength: float, begin: float, end: float) -> dict[Any, Any]:
        run = rewards.site.queue.find(name)
        return {**generate.with_run(run, strength, begin, end), tabs: gr.Tabs(selected="generate")}

    view = rewards.run
    rewards.start.click(
        told(start), rewards.inputs, [view.name, *rewards.explained],
        validator=rewards.form.validator(rewards.check), **PRIVATE,
    ).success(view.refresh, view.looked_at, view.outputs, **QUIET)  # fmt: skip
    view.use.click(told(use), view.taken_along, [*generate.used, tabs], **QUIET)
    rewards_page.select(view.refresh, view.looked_at, view.outputs, **QUIET)
    page.load(rewards.foresee, rewards.inputs, rewards.foreseen, **QUIET)


def _connect_attention(
    tabs: gr.Tabs, attention_page: gr.Tab, train: TrainTab, runs: RunsTab, attention: AttentionTab
) -> None:
    """Let a fine-tune take its pictures, words and length from the Train page."""

    def start(values: Values) -> dict[Any, Any]:
        try:
            attention.check_training(values)
            run = train.submit({**values, **attention.handed(values)})
        except FormError as error:
            return {attention.problems: attention.explain(error.problems)}
        name = train.site.queue.name(run)
        gr.Info(text.QUEUED.format(name=name))
        shown = {runs.picker: gr.update(value=name), tabs: gr.Tabs(selected="runs")}
        return {**shown, attention.problems: attention.explain({})}

    def look_first(values: Values) -> dict[Any, Any]:
        gr.Info(text_attention.HANDED)
        return {**attention.handed(values), tabs: gr.Tabs(selected="train")}

    asked = {*train.inputs, *attention.inputs, attention.known}
    attention.start.click(told(start), asked, [runs.picker, tabs, attention.problems], **PRIVATE)
    attention.first.click(look_first, attention.inputs, [*train.inputs, tabs], **QUIET)
    attention_page.select(attention.offer, attention.looked_at, attention.offered, **QUIET)


def launch(page: gr.Blocks, site: Site, host: str, port: int, accounts: Accounts | None = None) -> str:
    """Open the page and return its address; the caller closes it.

    Raises:
        ConfigError: Others can reach the address and there are no accounts, the port is taken, or the page cannot be
            reached.
        DataError: The folders of runs and images cannot be written.
    """
    if accounts is None and not is_loopback(host):
        raise ConfigError(text_auth.NO_AUTH.format(host=host, port=port))
    for folder in (site.queue.root, site.outputs):
        writable(folder)
    for _ in range(1 if port else PORTS_TRIED):
        try:
            with _asked_directly(host):
                return _listen(page, site, host, port or free_port(host), accounts)
        except httpx.HTTPError as error:
            page.close(verbose=False)
            raise ConfigError(text.NO_ANSWER.format(host=host, error=error)) from error
        except OSError:
            continue
    raise ConfigError(text.PORT_TAKEN.format(port=port))


@contextmanager
def _asked_directly(host: str) -> Iterator[None]:
    """Have gradio ask its own page to start up without a proxy, which does not know this machine."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    for name, value in before.items():
        os.environ[name] = ",".join(part for part in (value, host) if part)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _listen(page: gr.Blocks, site: Site, host: str, port: int, accounts: Accounts | None) -> str:
    """Open the page and return its address. Raises `OSError` where the port is taken."""
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
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
        # The page has answered by then. gradio would ask a second time and give up after three seconds, which a busy
        # machine may need.
        _frontend=False,
        footer_links=["api", "settings"],
        theme=theme(),
        css=CSS,
        head=HEAD,
        app_kwargs={
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=_names(host)),
                Middleware(Gate, accounts=accounts, max_body=MAX_REQUEST),
                Middleware(FirstPage),
            ],
            "routes": [report_route(site.queue)],
        },
    )
    return url


def serve(
    host: str = "127.0.0.1", port: int = 7860, accounts: Accounts | None = None, devices: Sequence[str] = ()
) -> None:
    """Show the page until Ctrl-C, and carry out queued runs. Runs that are under way outlive it.

    Args:
        host: Address to listen on; one that others can reach needs accounts.
        port: Port to listen on; 0 takes a free one.
        accounts: Who may come in; None lets everybody in who reaches the address.
        devices: As `Queue` takes them.

    Raises:
        ConfigError: As `launch` does, or a name is no device's.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    # One line for every request that gradio makes to itself is of use to nobody.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    here = Path().resolve()
    queue = Queue(Path("runs"), devices=devices)
    site = Site(queue, here / "outputs", adapters=here / "adapters", decoders=here / "decoders")
    with tempfile.TemporaryDirectory(prefix="lrdiff-page-") as cache:
        # Uploads lie here, readable for nobody else, until the page is closed; runs have their own copies.
        os.environ["GRADIO_TEMP_DIR"] = cache
        page = build(site=site, has_users=accounts is not None)
        url = launch(page, site, host, port, accounts)
        site.queue.start()
        threading.Thread(target=get_ready, args=(site,), name="lrdiff-ready", daemon=True).start()
        log.info("%s", text.LISTENING.format(url=url))
        try:
            _sleep_until_asked()
            log.info("%s", text.CLOSING)
        finally:
            site.queue.close()
            page.close(verbose=False)


def get_ready(site: Site) -> None:
    """Do beforehand what the first visitor would wait for: load the libraries that draw, and time a training step."""
    for module in DRAWING:
        importlib.import_module(module)
    order = example.order(site)
    if order is not None:
        estimate.measure_once(site.queue, *order)


def _names(host: str) -> list[str]:
    """Return the names by which a browser may call this page.

    A page of another site can point a name of its own at this machine and then read what it is answered, as far as the
    browser knows from its own site; only the name gives it away. The bracket is how an IPv6 address begins.
    """
    # On an address of others the log-in does this: its cookie belongs to the name that was logged in under.
    return ["127.0.0.1", "localhost", "[", host] if is_loopback(host) else ["*"]


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
