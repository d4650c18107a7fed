"""The Models page: what is installed, where, how large; import, export, delete."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr

from app import adapters, disk, library, text, text_models
from app.site import Site
from app.tabs.parts import QUIET, section
from app.told import told
from lrdiff.artifact import read_header
from lrdiff.errors import ArtifactError, DataError
from lrdiff.generate_config import AdapterSpec


class ModelsTab:
    """Tables of what is there, and what can be done with it."""

    def __init__(self, site: Site) -> None:
        """Render the page inside the present gradio context."""
        self.site = site
        gr.HTML(section(text_models.BASES, text_models.BASES_ABOUT), elem_classes="section", padding=False)
        self.bases = gr.HTML(padding=False)
        gr.HTML(section(text_models.ADAPTERS, text_models.ADAPTERS_ABOUT), elem_classes="section", padding=False)
        self.adapters = gr.HTML(padding=False, elem_id="adapters")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300), gr.Group():
                self.chosen = gr.Dropdown([], label=text_models.CHOOSE, elem_id="installed")
                with gr.Row():
                    self.export = gr.DownloadButton(text_models.EXPORT, interactive=False, min_width=130)
                    self.delete = gr.Button(text.DELETE, interactive=False, min_width=130)
                with gr.Row(visible=False) as self.confirm:
                    self.yes = gr.Button(text.DELETE_YES, variant="stop", min_width=130)
                    self.no = gr.Button(text.DELETE_NO, min_width=130)
            with gr.Column(min_width=300):
                self.upload = gr.File(label=text_models.IMPORT, type="filepath", height=150, elem_id="import")
        gr.HTML(section(text_models.DECODERS, text_models.DECODERS_ABOUT), elem_classes="section", padding=False)
        self.decoders = gr.HTML(padding=False)
        with gr.Group():
            self.marks = gr.Dropdown([], label=text_models.MARKS, info=text_models.MARKS_INFO)
            self.fuse = gr.Button(text_models.FUSE)
        self._wire()

    @property
    def offered(self) -> list[Any]:
        """What `offer` brings up to date."""
        return [self.bases, self.adapters, self.chosen, self.decoders, self.marks]

    def _wire(self) -> None:
        again = {"fn": self.offer, "inputs": None, "outputs": self.offered, **QUIET}
        self.upload.upload(told(self._import), self.upload, self.upload, **QUIET).success(**again)
        self.chosen.change(self._choose, self.chosen, [self.export, self.delete, self.confirm], **QUIET)
        self.delete.click(lambda: gr.update(visible=True), None, self.confirm, **QUIET)
        for button in (self.yes, self.no):
            button.click(lambda: gr.update(visible=False), None, self.confirm, **QUIET)
        self.yes.click(told(self._delete), self.chosen, None, **QUIET).success(**again)
        self.fuse.click(
            told(self._fuse), self.marks, None, concurrency_id="fuse", concurrency_limit=1, api_visibility="private"
        ).success(**again)

    def offer(self) -> list[Any]:
        """Return the updates of what this page shows."""
        found = adapters.adapters(self.site.queue, self.site.adapters)
        bases = [
            (item.name, text_models.PURPOSES.get(item.name, ""), _size(item.path), str(item.path))
            for item in library.shipped()
        ]
        rows = [
            (i.name, i.method, i.base_model, _unbroken(text.size(i.size)), i.from_run or text_models.INSTALLED)
            for i in found
        ]
        marked = [(i.key, i.base_model, _size(i.path), str(i.path)) for i in library.decoders([self.site.decoders])]
        choices = [(item.name, str(item.path)) for item in found]
        marks = [(item.name, str(item.path)) for item in found if item.component == "vae"]
        return [
            table(text_models.BASE_COLUMNS, bases, text_models.NO_BASES),
            table(text_models.ADAPTER_COLUMNS, rows, text_models.NO_ADAPTERS),
            gr.update(choices=choices, value=None),
            table(text_models.DECODER_COLUMNS, marked, text_models.NO_DECODERS),
            gr.update(choices=marks, value=marks[0][1] if marks else None),
        ]

    def _find(self, path: str | None) -> adapters.AdapterInfo:
        """Return an adapter that is here; what a request names is never taken for a path."""
        for item in adapters.adapters(self.site.queue, self.site.adapters):
            if str(item.path) == path:
                return item
        raise DataError(text_models.NO_SUCH)

    def _choose(self, path: str | None) -> list[Any]:
        found = [i for i in adapters.adapters(self.site.queue, self.site.adapters) if str(i.path) == path]
        export = gr.update(value=str(found[0].file), interactive=True) if found else gr.update(interactive=False)
        return [export, gr.update(interactive=bool(found)), gr.update(visible=False)]

    def _import(self, file: str | None) -> None:
        if not file:
            return
        try:
            info = adapters.install(Path(file), self.site.adapters)
        except ArtifactError as error:
            raise DataError(str(error).replace(f"{Path(file).parent}/", "")) from error
        gr.Info(text_models.IMPORTED.format(name=info.name, model=info.base_model))

    def _delete(self, path: str | None) -> None:
        item = self._find(path)
        if item.from_run:
            self.site.queue.delete(item.from_run)
        else:
            adapters.remove(item.file, self.site.adapters)
        gr.Info(text.DELETED.format(name=item.name))

    def _fuse(self, path: str | None) -> None:
        """Write a decoder with a mark merged in: the only form that may be given away."""
        from lrdiff.adapters import read_adapter
        from lrdiff.watermark.publish import publish

        if not path:
            raise DataError(text_models.NO_MARKS)
        item = self._find(path)
        key = read_header(item.file).extra.get("key", item.name)
        made = publish(read_adapter(AdapterSpec(item.path, 1.0)), self.site.decoders / str(key))
        gr.Info(text_models.FUSED.format(key=made.header.key, path=made.path))


def _size(path: Path) -> str:
    return _unbroken(text.size(disk.usage(path).size))


def _unbroken(words: str) -> str:
    """Keep a number and its unit on one line, also on a phone."""
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]], empty: str) -> str:
    """Return rows as an HTML table, or a sentence where there are none."""
    if not rows:
        return f"<p class='note'>{empty}</p>"
    head = "".join(f"<th scope='col'>{title}</th>" for title in columns)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='scroll' tabindex='0'><table class='plain'><tr>{head}</tr>{body}</table></div>"
