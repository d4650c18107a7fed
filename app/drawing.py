"""One generation in a thread of its own: waits for the device, reports where it is, can be cancelled."""

from __future__ import annotations

import base64
import html
import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from app import text
from app.jobs import Device
from app.priority import lower_thread
from lrdiff.errors import Cancelled, LrdiffError
from lrdiff.generate_config import GenerateConfig, plan

if TYPE_CHECKING:
    from lrdiff.backbones import Backbone
    from lrdiff.generate import Progress

log = logging.getLogger(__name__)

PATIENCE = 0.25
"""Seconds between two looks whether the device is free."""
GLIMPSES = 4
"""How often an image under way is shown: each costs one pass of the decoder."""


@dataclass(frozen=True, slots=True)
class Status:
    """Where a generation is. Replaced as a whole, so a reader never sees half of a change.

    Attributes:
        message: For people.
        share: Part that is done, 0 to 1.
        saved: Files written so far.
        error: What went wrong, or "".
        is_over: Whether nothing more will come.
        glimpse: The image under way as it is guessed at this step: a small PNG, or b"".
    """

    message: str
    share: float = 0.0
    saved: tuple[Path, ...] = ()
    error: str = ""
    is_over: bool = False
    glimpse: bytes = b""


@dataclass(slots=True)
class Pace:
    """How fast sampling is, without the first step, which warms up, and without what is shown in between.

    Attributes:
        steps: Steps that were timed.
        spent: Seconds for them.
        left: When the present step began.
    """

    steps: int = 0
    spent: float = 0.0
    left: float = 0.0

    def arrive(self, step: int) -> None:
        """Note that a step, counted from 1, is done."""
        if step > 1:
            self.steps += 1
            self.spent += time.monotonic() - self.left

    def leave(self) -> None:
        """Note that the next one begins."""
        self.left = time.monotonic()

    @property
    def per_step(self) -> float:
        """Seconds of a step; 0 where none was timed."""
        return self.spent / self.steps if self.steps else 0.0


@dataclass(slots=True)
class Drawing:
    """A generation under way.

    Attributes:
        configs: What to make, one after the other, with one model.
        device: Taken for the time of the generation.
        wait: Whether to wait for the device; else both share it.
        finish: Called with all files at the end; what it writes comes last.
        status: The newest state.
        paces: How fast each of `configs` was sampled.
    """

    configs: Sequence[GenerateConfig]
    device: Device
    wait: bool = True
    finish: Callable[[Sequence[Path]], Path | None] | None = None
    status: Status = field(default_factory=lambda: Status(text.LOADING))
    paces: list[Pace] = field(default_factory=list)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin in a thread."""
        self._thread = threading.Thread(target=self._work, name="lrdiff-drawing", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ask it to end after the present sampling step. Images that were written stay."""
        self._cancelled.set()

    def join(self, timeout: float) -> None:
        """Wait until it is over, at most `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    def follow(self, every: float) -> Generator[Status, None, None]:
        """Begin, and yield every new state, the last included. Whoever stops listening ends the generation.

        Args:
            every: Seconds between two looks.
        """
        shown: Status | None = None
        self.start()
        try:
            while shown is None or not shown.is_over:
                status = self.status
                if status != shown:
                    yield status
                    shown = status
                else:
                    self.join(every)
        finally:
            self.cancel()

    def _work(self) -> None:
        begin = time.monotonic()
        lower_thread()
        try:
            saved = self._waited() if self.wait else self._generate()
        except Cancelled:
            made = text.plural(text.MADE, len(self.status.saved))
            self.status = Status(text.CANCELLED.format(made=made), 0.0, self.status.saved, is_over=True)
        except LrdiffError as error:
            self._fail(str(error))
        except Exception as error:
            log.exception("generation failed")
            self._fail(text.FAILED_UNEXPECTEDLY.format(error=f"{type(error).__name__}: {error}"))
        else:
            facts = {"count": text.plural(text.MADE, len(saved)), "folder": self.configs[0].out}
            message = text.RESULT_FACTS.format(time=text.duration(time.monotonic() - begin), **facts)
            self.status = Status(message, 1.0, tuple(saved), is_over=True)

    def _fail(self, error: str) -> None:
        self.status = Status("", 0.0, self.status.saved, error, is_over=True)

    def _waited(self) -> list[Path]:
        """Generate once the device is free, and hold it meanwhile."""
        while True:
            with self.device.held() as free:
                if free:
                    return self._generate()
            self.status = Status(waits(self.device))
            if self._cancelled.wait(PATIENCE):
                raise Cancelled

    def _generate(self) -> list[Path]:
        from lrdiff import backbones
        from lrdiff.generate import DTYPES, generate

        self.status = Status(text.LOADING)
        first = self.configs[0]
        backbone = backbones.load(first.model, device=first.device, dtype=DTYPES[first.dtype])
        saved: list[Path] = []
        for config in self.configs:
            self.paces.append(Pace())
            saved += generate(config, self._reporter(backbone, tuple(saved)), backbone=backbone)
        if self.finish is not None:
            last = self.finish(saved)
            saved += [last] if last is not None else []
        return saved

    def _reporter(self, backbone: Backbone, before: tuple[Path, ...]) -> Callable[[Progress], None]:
        """Return what is called after every sampling step of one configuration, with the files of earlier ones."""
        images = sum(len(plan(config)) for config in self.configs)
        pace = self.paces[-1]

        def report(progress: Progress) -> None:
            if progress.x0 is not None:
                pace.arrive(progress.step)
            tell(progress)
            pace.leave()

        def tell(progress: Progress) -> None:
            saved = before + progress.saved
            if self._cancelled.is_set():
                self.status = replace(self.status, saved=saved)  # what was written meanwhile is shown
                raise Cancelled
            if progress.x0 is None:
                self.status = Status(self.status.message, min(1.0, len(saved) / images), saved)
                return
            first, last = len(saved) + 1, len(saved) + len(progress.items)
            form = text.DRAWING if last > first else text.DRAWING_ONE
            message = form.format(first=first, last=last, images=images, step=progress.step, steps=progress.steps)
            done = len(saved) + len(progress.items) * progress.step / progress.steps
            glimpse = _glimpse(backbone, progress) or (self.status.glimpse if saved == self.status.saved else b"")
            self.status = Status(message, min(1.0, done / images), saved, glimpse=glimpse)

        return report


def waits(device: Device) -> str:
    """Say for whom one waits who wants a device that is taken."""
    name = (device.holder() or {}).get("run")
    return text.WAITS_FOR_RUN.format(name=name) if name else text.WAITS


def _glimpse(backbone: Backbone, progress: Progress) -> bytes:
    """Return the first image of a batch as it is guessed at a few of the steps, else b""."""
    from lrdiff.images import to_image
    from lrdiff.png import encode

    every = max(1, progress.steps // (GLIMPSES + 1))
    if progress.x0 is None or progress.step % every or progress.step == progress.steps:
        return b""
    image = to_image(backbone.decode(progress.x0[:1])[0].clamp(-1, 1))
    image.thumbnail((256, 256))
    return encode(image, {})


def bar(status: Status) -> str:
    """Return a status as HTML."""
    if status.error:
        return f"<div class='problems' role='alert'><p>{text.NOT_GENERATED}</p>{html.escape(status.error)}</div>"
    if status.is_over:
        return f"<p class='facts-line' role='status'>{html.escape(status.message)}</p>"
    seen = ""
    if status.glimpse:
        data = base64.b64encode(status.glimpse).decode()
        seen = f"<img class='glimpse' src='data:image/png;base64,{data}' alt='{text.GLIMPSE}'>"
    return (
        f"<div class='run running'><div class='row'><span role='status'>{html.escape(status.message)}</span></div>"
        f"<div class='bar' role='progressbar' aria-valuenow='{100 * status.share:.0f}' aria-valuemin='0' "
        f"aria-valuemax='100' aria-label='{text.GENERATE}'><div style='width:{100 * status.share:.1f}%'></div></div>"
        f"{seen}</div>"
    )
