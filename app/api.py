"""The operations that other programs may call: `gradio_client.Client(url).predict(..., api_name="/runs")`.

/runs                        every run, newest first
/run      name               one run: state, step, losses
/train    images, config     put a run into the queue
/stop     name               ask a run to stop
/generate config             make images; returns the files
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from pydantic import ValidationError

from app import pictures, text, watch
from app.drawing import Drawing
from app.form import FormError
from app.site import Site
from app.tabs.train import METHOD
from lrdiff.errors import DataError, LrdiffError
from lrdiff.generate_config import GenerateConfig
from trainers.registry import run_config_class


def publish(site: Site) -> None:
    """Add the named endpoints to the present gradio context."""

    def runs() -> list[dict[str, Any]]:
        """List every run, newest first: name, state, method, times."""
        return [_short(site, run.path.name) for run, _ in site.queue.runs()]

    def run(name: str) -> dict[str, Any]:
        """Return one run: state, outcome, step, total, seconds left, metrics, config."""
        view = watch.look(site.queue, name)
        return _short(site, name) | {"metrics": list(view.metrics), "config": view.record["config"]}

    def train(images: list[dict[str, Any]], config: dict[str, Any], name: str = "") -> str:
        """Queue a run of tensor-lora on uploaded pictures. `config` holds what differs from the defaults, nested."""
        found = pictures.check([_uploaded(image) for image in images])
        problems = [f"{item.path.name}: {item.problem}" for item in found if item.problem]
        if problems or not found:
            raise FormError({"data.images": "; ".join(problems) or text.NO_IMAGES})
        data = {**config.get("data", {}), "images": "images"}
        full = _validated(run_config_class(METHOD), {"method": {}, **config, "data": data})
        return site.queue.submit(METHOD, full.model_dump(mode="json"), pictures.named(found), name).path.name

    def stop(name: str) -> str:
        """Ask a run to finish its step, save and end; one that waits ends at once. Returns its state."""
        site.queue.stop(name)
        return watch.look(site.queue, name).state

    def generate(config: dict[str, Any]) -> list[dict[str, Any]]:
        """Make images and return the files. `config` holds what differs from the defaults; `out` is the server's."""
        made = _validated(GenerateConfig, {**config, "out": site.outputs})
        drawing = Drawing(made, site.queue.device)
        drawing.start()
        while not drawing.status.is_over:
            drawing.join(1.0)
        if drawing.status.error:
            raise gr.Error(drawing.status.error, print_exception=False)
        return [gr.FileData(path=str(path), orig_name=path.name).model_dump() for path in drawing.status.saved]

    for operation in (runs, run, train, stop, generate):
        gr.api(told(operation), api_name=operation.__name__, concurrency_limit=None)


def _short(site: Site, name: str) -> dict[str, Any]:
    view = watch.look(site.queue, name)
    times = {key: view.record.get(key) for key in ("method", "created", "started", "ended", "exit_code")}
    return {
        "name": name,
        "state": view.state,
        "outcome": view.outcome,
        "step": view.step,
        "total": view.total,
        "seconds_left": view.left,
        "adapter": str(view.run.artifact_path) if view.has_artifact else None,
        **times,
    }


def _uploaded(image: dict[str, Any]) -> Path:
    """Return the path of an uploaded file; any other file of the server is refused, whoever names it."""
    path = Path(str(image.get("path", ""))).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise DataError(text.NOT_UPLOADED.format(name=path.name))
    return path


def _validated(model: Any, values: dict[str, Any]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise FormError(
            {".".join(map(str, item["loc"])): text.problem(item) for item in error.errors(include_url=False)}
        ) from error


def told(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Let people and programs read what was wrong with a request; any other error stays in the server's log."""

    @wraps(operation)
    def call(*words: Any, **named: Any) -> Any:
        try:
            return operation(*words, **named)
        except LrdiffError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return call
