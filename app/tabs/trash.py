"""The trash: deleted runs, to be put back or removed for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from app import disk, text
from app.site import Site
from app.tabs.parts import QUIET
from app.told import told


class TrashTab:
    """A choice of deleted runs and what can be done with one."""

    def __init__(self, site: Site, fold: gr.Accordion) -> None:
        """Render inside the present gradio context; the choices are read when `fold` is opened."""
        self.site = site
        self.picker = gr.Dropdown([], label=text.TRASHED, interactive=True, elem_id="trashed")
        with gr.Row(elem_classes="actions"):
            self.restore = gr.Button(text.RESTORE, min_width=150)
            self.purge = gr.Button(text.PURGE, variant="stop", min_width=150)
        with gr.Group(visible=False) as self.confirm:
            gr.HTML(f"<p role='alert'>{text.PURGE_ASK}</p>", padding=True)
            with gr.Row():
                self.yes = gr.Button(text.PURGE_YES, variant="stop", min_width=140)
                self.no = gr.Button(text.DELETE_NO, min_width=140)
        fold.expand(self.offer, None, self.picker, **QUIET)
        self.purge.click(lambda name: gr.update(visible=bool(name)), self.picker, self.confirm, **QUIET)
        for button in (self.yes, self.no):
            button.click(lambda: gr.update(visible=False), None, self.confirm, **QUIET)
        self._restored = self.restore.click(told(self._restore), self.picker, None, **QUIET)
        self._restored.then(self.offer, None, self.picker, **QUIET)
        self.yes.click(told(self._purge), self.picker, None, **QUIET).then(self.offer, None, self.picker, **QUIET)

    def changed(self, act: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        """Call something after a run came back."""
        self._restored.then(act, inputs, outputs, **QUIET)

    def offer(self) -> Any:
        """Return the update of the list."""
        found = [
            (f"{item.name} · {item.deleted:%Y-%m-%d %H:%M} · {text.size(disk.usage(item.path).size)}", item.identity)
            for item in self.site.queue.trash()
        ]
        info = None if found else text.TRASH_EMPTY
        return gr.update(choices=found, value=found[0][1] if found else None, info=info)

    def _restore(self, identity: str | None) -> None:
        if identity:
            run = self.site.queue.restore(identity)
            gr.Info(text.RESTORED.format(name=self.site.queue.name(run)))

    def _purge(self, identity: str | None) -> None:
        if identity:
            self.site.queue.purge(identity)
