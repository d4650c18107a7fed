"""What a run learns from: dropped pictures or an example subject, their captions, and the sheet that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import gradio as gr

from app import captions, pictures, text
from app.form import Values
from app.pictures import Picture, Subject
from app.site import Site
from app.tabs.parts import section
from lrdiff.images import EXTENSIONS


class TrainPictures:
    """The left half of the Train page."""

    def __init__(self, site: Site) -> None:
        """Render inside the present gradio context, with the first example subject chosen."""
        self.subjects = pictures.subjects(site.subjects)
        gr.HTML(section(text.IMAGES_TITLE, text.IMAGES_ABOUT), elem_classes="section", padding=False)
        # The trainer checks the kinds itself, by content: a filter here would drop files without a word.
        self.files = gr.File(label=text.DROP, file_count="multiple", type="filepath", height=150, elem_id="files")
        first = next(iter(self.subjects), "")
        self.example = gr.Dropdown(
            [(text.EXAMPLE_NONE, ""), *((_label(name, subject), name) for name, subject in self.subjects.items())],
            value=first,
            label=text.EXAMPLE,
            info=None if self.subjects else text.NO_EXAMPLES,
            interactive=bool(self.subjects),
            elem_id="example",
        )
        found = self._found(None, first)
        self.sheet = gr.HTML(pictures.sheet(found), padding=False)
        with gr.Accordion(text.CAPTIONS, open=False, elem_id="captions"):
            gr.HTML(f"<p class='note'>{text.CAPTIONS_INFO}</p>", padding=False)
            self.captions = gr.Dataframe(
                captions.rows(found),
                headers=list(text.CAPTION_COLUMNS),
                column_count=2,
                datatype="str",
                type="array",
                static_columns=[0],
                column_widths=["34%", "66%"],
                interactive=True,
                wrap=True,
                label=text.CAPTIONS,
                show_label=False,
                buttons=[],
            )

    @property
    def inputs(self) -> list[Any]:
        """Every component that decides the pictures."""
        return [self.files, self.example, self.captions]

    @property
    def shown(self) -> list[Any]:
        """What `dropped` and `chosen` bring up to date."""
        return [self.sheet, self.captions]

    @property
    def first(self) -> Subject | None:
        """The example that is chosen at first."""
        return self.subjects.get(self.example.value)

    def dropped(self, files: list[str] | None, example: str, edited: captions.Rows) -> list[Any]:
        """Return updates of `shown` after files were dropped or taken away."""
        found = self._found(files, example)
        return [pictures.sheet(found), captions.rows(found, edited)]

    def chosen(self, files: list[str] | None, example: str) -> list[Any]:
        """Return updates of `shown` for an example subject, or for the dropped files where none is chosen."""
        return self.dropped(files, example, ())

    def read(self, values: Values) -> list[Picture]:
        """Return the pictures of the form, those with problems included."""
        return self._found(values[self.files], values[self.example])

    def files_of(self, values: Values) -> AbstractContextManager[dict[str, Path]]:
        """Give the files of a run for the time of a `with` block: pictures, and captions as they were edited."""
        return captions.with_captions(self.read(values), captions.by_name(values[self.captions]))

    def check(self, values: Values) -> dict[str, str]:
        """Return what is wrong with the pictures, as a problem of "data.images"."""
        found = self.read(values)
        bad = [picture.path.name for picture in found if picture.problem]
        if bad:
            return {"data.images": text.FIX_PICTURES.format(names=", ".join(bad))}
        return {} if found else {"data.images": text.NO_IMAGES}

    def with_folder(self, folder: Path) -> Mapping[Any, Any]:
        """Return updates that show the pictures of a folder."""
        files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        rows = captions.rows(pictures.check(files))
        return {self.files: [str(path) for path in files], self.example: "", self.captions: rows}

    def _found(self, files: list[str] | None, example: str) -> list[Picture]:
        paths = self.subjects[example].files if example else [Path(file) for file in files or []]
        return pictures.check(list(paths))


def _label(name: str, subject: Subject) -> str:
    shown = sum(path.suffix.lower() in EXTENSIONS for path in subject.files)
    return text.EXAMPLE_LABEL.format(name=name, noun=subject.noun, count=text.plural(text.PICTURES, shown))
