"""The Verify page: the bytes of a file are judged; below, the keys."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

import gradio as gr

from app import text_verify, verifying
from app.site import Site
from app.tabs.parts import QUIET, problem_box, section
from app.told import told
from app.verdict_view import verdict
from lrdiff.errors import LrdiffError

WAITING = f"<div class='empty waiting'>{text_verify.WAITING}</div>"


class VerifyTab:
    """The components of the page and what they mean together."""

    def __init__(self, site: Site) -> None:
        """Render the page inside the present gradio context."""
        self.site = site
        self.absent = gr.HTML(f"<p class='lead warn'>{text_verify.ABSENT}</p>", padding=False, elem_id="absent")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                gr.HTML(section(text_verify.TITLE, text_verify.ABOUT), elem_classes="section", padding=False)
                # A file, not an image component: that one would decode the picture and encode it anew.
                self.file = gr.File(label=text_verify.FILE, type="filepath", height=150, elem_id="suspect")
                with gr.Group():
                    self.key = gr.Dropdown(
                        [(text_verify.ALL_KEYS, "")], value="", label=text_verify.KEY, info=text_verify.KEY_INFO,
                        elem_id="key",
                    )  # fmt: skip
                    with gr.Row():
                        self.alpha = gr.Textbox(
                            "1e-6", label=text_verify.ALPHA, info=text_verify.ALPHA_INFO, max_lines=1, min_width=140
                        )
                        self.search = gr.Checkbox(label=text_verify.SEARCH, info=text_verify.SEARCH_INFO, min_width=140)
                self.start = gr.Button(text_verify.VERIFY, variant="primary", size="lg", elem_id="verify")
            with gr.Column(scale=6, min_width=300):
                self.answer = gr.HTML(WAITING, padding=False, elem_id="verdict")
                with gr.Column(visible=False) as self.tryout:
                    gr.HTML(f"<p class='note'>{text_verify.EXAMPLE_ABOUT}</p>", padding=False)
                    self.example = gr.Button(text_verify.EXAMPLE, elem_id="example-mark")
        self._render_keys()
        self._wire()

    def _render_keys(self) -> None:
        gr.HTML(section(text_verify.KEYS, text_verify.KEYS_ABOUT), elem_classes="section", padding=False)
        self.keys = gr.HTML(padding=False, elem_id="keys")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300), gr.Group():
                self.owner = gr.Textbox(
                    label=text_verify.OWNER_LABEL, info=text_verify.OWNER_INFO, max_lines=1, elem_id="owner"
                )
                self.make = gr.Button(text_verify.NEW_KEY, elem_id="new-key")
            with gr.Column(min_width=300), gr.Group():
                with gr.Row():
                    self.which = gr.Dropdown([], label=text_verify.WHICH, min_width=120)
                    self.reason = gr.Textbox(
                        label=text_verify.REASON, info=text_verify.REASON_INFO, max_lines=1, min_width=160
                    )
                self.revoke = gr.Button(text_verify.REVOKE, variant="stop")

    @property
    def offered(self) -> list[Any]:
        """What `offer` brings up to date."""
        return [self.key, self.which, self.keys, self.absent, self.start, self.make, self.tryout]

    @property
    def asked(self) -> list[Any]:
        """What `judge` takes."""
        return [self.file, self.key, self.alpha, self.search]

    def _wire(self) -> None:
        self.start.click(
            self.judge,
            self.asked,
            self.answer,
            concurrency_id="verify",
            concurrency_limit=1,
            api_visibility="private",
            show_progress="minimal",
        )
        self.file.clear(lambda: WAITING, None, self.answer, **QUIET)
        self.make.click(told(self._make), self.owner, self.owner, **QUIET).success(
            self.offer, None, self.offered, **QUIET
        )
        self.revoke.click(told(self._revoke), [self.which, self.reason], self.reason, **QUIET).success(
            self.offer, None, self.offered, **QUIET
        )

    def offer(self) -> list[Any]:
        """Return updates of the keys, wherever the page shows them, and of what needs an extractor."""
        there = verifying.is_readable(self.site)
        able = [gr.update(visible=not there), gr.update(interactive=there), gr.update(interactive=there)]
        try:
            found = verifying.keys(self.site)
        except LrdiffError as error:
            return [gr.skip(), gr.skip(), _not_judged(str(error)), *able, gr.update(visible=False)]
        valid = [(f"{key.id} · {key.owner}", key.id) for key in found if key.revoked is None]
        rows = "".join(
            f"<tr><td><code>{key.id}</code></td><td>{html.escape(key.owner)}</td><td>{key.created[:10]}</td>"
            f"<td>{_state(key)}</td></tr>"
            for key in found
        )
        head = "".join(f"<th scope='col'>{title}</th>" for title in text_verify.KEY_COLUMNS)
        table = f"<div class='scroll' tabindex='0'><table class='plain'><tr>{head}</tr>{rows}</table></div>"
        listed = table if found else f"<p class='note'>{text_verify.NO_KEYS_YET}</p>"
        return [
            gr.update(choices=[(text_verify.ALL_KEYS, ""), *valid]),
            gr.update(choices=valid, value=None),
            listed,
            *able,
            gr.update(visible=there and not valid),
        ]

    def judge(self, file: str | None, key: str, alpha: str, search: bool) -> str:
        """Return the verdict on a file as HTML, or what stands against one."""
        if not file:
            return _not_judged(text_verify.NO_FILE)
        try:
            rate = float(alpha)
        except ValueError:
            rate = math.nan
        if not 0 < rate < 1:
            return _not_judged(f"{text_verify.ALPHA}: {text_verify.BAD_ALPHA}")
        try:
            return verdict(verifying.verify(self.site, Path(file), key or "", rate, search))
        except LrdiffError as error:
            return _not_judged(str(error))

    def _make(self, owner: str) -> str:
        if not owner.strip():
            raise gr.Error(text_verify.GIVE_OWNER, print_exception=False)
        reader = verifying.network(self.site)
        book = verifying.registry(self.site, create=True)
        key = book.create(owner=owner.strip(), extractor_sha256=reader.sha256(), length=reader.bits)
        gr.Info(text_verify.MADE.format(id=key.id))
        return ""

    def _revoke(self, key: str | None, reason: str) -> str:
        if not key or not reason.strip():
            raise gr.Error(text_verify.GIVE_REASON, print_exception=False)
        verifying.registry(self.site).revoke(key, reason.strip())
        gr.Info(text_verify.IS_REVOKED.format(id=key))
        return ""


def _not_judged(reason: str) -> str:
    return problem_box({"": reason}, text_verify.NOT_JUDGED)


def _state(key: Any) -> str:
    if key.revoked is not None:
        return html.escape(text_verify.REVOKED.format(reason=key.reason))
    return text_verify.ATTACHED if key.decoder_sha256 else text_verify.COUNTS
