"""The 3D page: a person's head, or one drawn at random, to turn, to change, and to take along."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path
from typing import Any

import gradio as gr

from app import adapters, text_heads
from app.site import Site
from app.tabs.parts import QUIET, section
from app.told import told
from lrdiff.artifact import read_header
from lrdiff.assets import MODELS
from lrdiff.errors import ConfigError, LrdiffError
from trainers.rundir import RunDir

WORK: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "heads", "concurrency_limit": 1}
FRAMES, YAW, PITCH = 40, 0.7, 0.15
RESOLUTION, LEVEL = 128, 10.0
MODEL = "heads"
COMPONENT = "triplane"
"""What adapters of heads say that they belong to."""


def is_head(run: RunDir) -> bool:
    """Return whether an ended run learned a head."""
    return read_header(run.artifact_path).component == COMPONENT


class HeadsTab:
    """The components of the page and what they mean together."""

    def __init__(self, site: Site, model: Path = MODELS / MODEL) -> None:
        """Render the page inside the present gradio context.

        Args:
            site: Runs, adapters, and the folder for what is made.
            model: Folder of the generator.
        """
        self.site, self.model = site, model
        self.absent = gr.HTML(f"<p class='lead warn'>{text_heads.ABSENT}</p>", padding=False, elem_id="no-heads")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                gr.HTML(section(text_heads.TITLE, text_heads.ABOUT), elem_classes="section", padding=False)
                with gr.Group():
                    self.person = gr.Dropdown(
                        [(text_heads.NOBODY, "")], value="", label=text_heads.PERSON, info=text_heads.PERSON_INFO,
                        elem_id="person",
                    )  # fmt: skip
                    self.seed = gr.Number(
                        0, label=text_heads.SEED, info=text_heads.SEED_INFO, precision=0, minimum=0, elem_id="head-seed"
                    )
                    with gr.Row(visible=False) as self.photos:
                        self.photo = gr.Number(
                            0, label=text_heads.PHOTO, info=text_heads.PHOTO_INFO, precision=0, minimum=0, min_width=130
                        )
                        self.to = gr.Number(
                            0, label=text_heads.TO, info=text_heads.TO_INFO, precision=0, minimum=0, min_width=130
                        )
                        self.share = gr.Slider(0, 1, 0, step=0.05, label=text_heads.SHARE)
                    with gr.Row():
                        self.edit = gr.Dropdown(
                            [(text_heads.NO_EDIT, "")], value="", label=text_heads.EDIT, info=text_heads.EDIT_INFO,
                            min_width=130,
                        )  # fmt: skip
                        self.amount = gr.Slider(-3, 3, 1, step=0.1, label=text_heads.AMOUNT, min_width=130)
                with gr.Row():
                    self.turn = gr.Button(text_heads.TURN, variant="primary", elem_id="turn-head")
                    self.mesh = gr.Button(text_heads.MESH, elem_id="mesh-head")
            with gr.Column(scale=6, min_width=300):
                # Downloads are among the files: gradio's own links have no name for a screen reader.
                shown: dict[str, Any] = {"interactive": False, "buttons": [], "visible": False}
                self.picture = gr.HTML(padding=False, elem_id="head-picture")
                self.video = gr.Video(label=text_heads.VIDEO, loop=True, autoplay=True, height=320, **shown)
                self.surface = gr.Model3D(label=text_heads.SURFACE, height=320, **shown)
                self.files = gr.File(
                    label=text_heads.FILES,
                    file_count="multiple",
                    interactive=False,
                    visible=False,
                    elem_id="made-heads",
                )
        self._wire()

    @property
    def offered(self) -> list[Any]:
        """What `offer` brings up to date."""
        return [self.absent, self.person, self.edit, self.turn, self.mesh]

    @property
    def asked(self) -> list[Any]:
        """What says which head is shown."""
        return [self.person, self.seed, self.photo, self.to, self.share, self.edit, self.amount]

    def _wire(self) -> None:
        self.person.change(self._show_photos, self.person, [self.photos, self.seed], **QUIET)
        for part in (self.person, self.seed, self.photo, self.to, self.edit):
            part.change(told(self.draw), self.asked, self.picture, show_progress="hidden", **WORK)
        for slider in (self.share, self.amount):
            slider.release(told(self.draw), self.asked, self.picture, show_progress="hidden", **WORK)
        for button, make, shown in ((self.turn, self.film, self.video), (self.mesh, self.cut, self.surface)):
            # Seen at once, so that progress has a place.
            begun = button.click(lambda: 2 * [gr.update(visible=True)], None, [shown, self.files], **QUIET)
            begun.then(told(make), self.asked, [shown, self.files], **WORK)

    def offer(self) -> list[Any]:
        """Return updates of who can be shown and of what can be changed."""
        from lrdiff.triplane.store import directions_of, fingerprint

        try:
            base, known = fingerprint(self.model), sorted(directions_of(self.model))
        except LrdiffError:
            return [gr.update(visible=True), gr.skip(), gr.skip(), *2 * [gr.update(interactive=False)]]
        found = adapters.fitting(adapters.adapters(self.site.queue, self.site.adapters), base, [COMPONENT])
        people = [(item.name, str(item.path)) for item in found]
        return [
            gr.update(visible=False),
            gr.update(choices=[(text_heads.NOBODY, ""), *people]),
            gr.update(choices=[(text_heads.NO_EDIT, ""), *((name.replace("_", " "), name) for name in known)]),
            *2 * [gr.update(interactive=True)],
        ]

    def with_run(self, run: RunDir) -> dict[Any, Any]:
        """Return updates that show the head that a run learned.

        Raises:
            ConfigError: It belongs to another generator than the one of this page.
        """
        updates = dict(zip(self.offered, self.offer(), strict=True))
        people = updates[self.person].get("choices", [])
        if str(run.path) not in [path for _, path in people]:
            raise ConfigError(text_heads.ANOTHER_GENERATOR.format(run=run.path))
        return updates | {self.person: gr.update(choices=people, value=str(run.path))}

    def _show_photos(self, person: str) -> list[Any]:
        return [gr.update(visible=bool(person)), gr.update(visible=not person)]

    def draw(self, *asked: Any) -> str:
        """Return the head from the front, as HTML."""
        from lrdiff.images import to_image
        from lrdiff.png import encode
        from lrdiff.triplane.orbits import swing

        generator, ws = self._head(*asked)
        image = to_image(generator.view(ws, swing(generator, 2, 0.0)[:1]).image[0].clamp(-1, 1))
        data = base64.b64encode(encode(image, {})).decode()
        return f"<img class='portrait' src='data:image/png;base64,{data}' alt='{text_heads.PICTURE}'>"

    def first(self, *asked: Any) -> Any:
        """Return the head from the front for somebody who opens the page, where there is a generator."""
        from lrdiff.triplane.store import WEIGHTS

        return self.draw(*asked) if (self.model / WEIGHTS).is_file() else gr.skip()

    def film(self, *asked: Any) -> list[Any]:
        """Write a turn of the head; return the video, and the files to take along."""
        from lrdiff.triplane.orbits import swing, turntable, write_animation

        generator, ws = self._head(*asked)
        path = self._free("head", ".mp4")
        cameras = swing(generator, FRAMES, YAW, PITCH)
        write_animation(path, [view.image[0] for view in turntable(generator, ws, cameras)])
        return [str(path), self._along(path, asked[0])]

    def cut(self, *asked: Any) -> list[Any]:
        """Write the head's surface; return it, and the files to take along."""
        from lrdiff.triplane.mesh import head_mesh, write_glb

        generator, ws = self._head(*asked)
        path = self._free("head", ".glb")
        write_glb(path, head_mesh(generator, ws, RESOLUTION, LEVEL))
        return [str(path), self._along(path, asked[0])]

    def _head(
        self, person: str, seed: float, photo: float, to: float, share: float, edit: str, amount: float
    ) -> tuple[Any, Any]:
        """Return the generator and the latent that is shown."""
        from app.commands.triplane_head import HeadOptions, read_head

        edits = (f"{edit}={amount:g}",) if edit else ()
        if not person:
            head = read_head(self.model, HeadOptions(seed=int(seed), edit=edits))
            return head.generator, head.ws
        one, other = (
            read_head(self.model, HeadOptions(adapter=Path(person), photo=int(number), edit=edits))
            for number in (photo, to)
        )
        return one.generator, one.ws.lerp(other.ws, float(share))

    def _free(self, name: str, ending: str) -> Path:
        """Return a new path in the folder of what the page makes."""
        try:
            self.site.outputs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.site.outputs}: cannot be made ({error}); choose another --outputs") from error
        paths = (self.site.outputs / f"{name}-{number:03d}{ending}" for number in itertools.count(1))
        return next(path for path in paths if not path.exists())

    def _along(self, made: Path, person: str) -> list[str]:
        adapter = Path(person) if person else None
        if adapter is not None and adapter.is_dir():
            adapter = adapter / "adapter.safetensors"
        return [str(path) for path in (made, adapter) if path is not None]
