"""One generation in a thread of its own: waits for the device, reports where it is, can be cancelled."""

from __future__ import annotations

import html
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from app import text
from app.jobs import Device
from lrdiff.errors import Cancelled, LrdiffError
from lrdiff.generate_config import GenerateConfig

log = logging.getLogger(__name__)

PATIENCE = 0.25
"""Seconds between two looks whether the device is free."""


@dataclass(slots=True)
class Status:
    """Where a generation is. Replaced as a whole, so a reader never sees half of a change.

    Attributes:
        message: For people.
        share: Part that is done, 0 to 1.
        saved: Files written so far.
        error: What went wrong, or "".
        is_over: Whether nothing more will come.
    """

    message: str
    share: float = 0.0
    saved: tuple[Path, ...] = ()
    error: str = ""
    is_over: bool = False


@dataclass(slots=True)
class Drawing:
    """A generation under way.

    Attributes:
        config: What to make.
        device: Taken for the time of the generation.
        wait: Whether to wait for the device; else both share it.
        status: The newest state.
    """

    config: GenerateConfig
    device: Device
    wait: bool = True
    status: Status = field(default_factory=lambda: Status(text.LOADING))
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

    def _work(self) -> None:
        begin = time.monotonic()
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
            facts = {"count": text.plural(text.MADE, len(saved)), "folder": self.config.out}
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
            name = (self.device.holder() or {}).get("run")
            self.status = Status(text.WAITS_FOR_RUN.format(name=name) if name else text.WAITS)
            if self._cancelled.wait(PATIENCE):
                raise Cancelled

    def _generate(self) -> list[Path]:
        from lrdiff.generate import Progress, generate

        def report(progress: Progress) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            first, last = len(progress.saved) + 1, len(progress.saved) + len(progress.items)
            form = text.DRAWING if last > first else text.DRAWING_ONE
            done = len(progress.saved) + len(progress.items) * progress.step / progress.steps
            message = form.format(
                first=first, last=last, images=progress.images, step=progress.step, steps=progress.steps
            )
            if progress.x0 is None:
                done, message = float(len(progress.saved)), self.status.message
            self.status = Status(message, min(1.0, done / progress.images), progress.saved)

        self.status = Status(text.LOADING)
        return generate(self.config, report)


def bar(status: Status) -> str:
    """Return a status as HTML."""
    if status.error:
        return f"<div class='problems' role='alert'><p>{text.NOT_GENERATED}</p>{html.escape(status.error)}</div>"
    if status.is_over:
        return f"<p class='facts-line' role='status'>{html.escape(status.message)}</p>"
    return (
        f"<div class='run running'><div class='row'><span role='status'>{html.escape(status.message)}</span></div>"
        f"<div class='bar' role='progressbar' aria-valuenow='{100 * status.share:.0f}' aria-valuemin='0' "
        f"aria-valuemax='100' aria-label='{text.GENERATE}'><div style='width:{100 * status.share:.1f}%'></div></div>"
        "</div>"
    )
