"""The operations that other programs may call. Everything else of the page is private. See app/README.md.

    from gradio_client import Client, handle_file
    client = Client("http://127.0.0.1:7860")
    client.predict([handle_file("mug.png")], {"optim": {"steps": 300}}, "mug", "tensor-lora", api_name="/train")

Each is also plain REST: POST /gradio_api/call/NAME with {"data": [...]}, then GET /gradio_api/call/NAME/EVENT_ID.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from pydantic import ValidationError, validate_call

from app import adapters as shelf
from app import compare as comparison
from app import library, limits, pictures, text, verifying, watch
from app.drawing import Drawing
from app.form import FormError
from app.site import Site
from app.told import told
from lrdiff.errors import ConfigError, DataError
from lrdiff.generate_config import GenerateConfig
from trainers.registry import run_config_class

FileData = dict[str, Any]


def publish(site: Site) -> None:
    """Add the named endpoints to the present gradio context."""
    for operation in (*_of_runs(site), *_of_images(site)):
        gr.api(told(_checked(operation)), api_name=operation.__name__, concurrency_limit=None)


def _checked(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Hold a request to the types that an operation declares. Raises `FormError` by argument."""
    typed = validate_call(operation)

    @wraps(operation)
    def call(*words: Any) -> Any:
        if any(isinstance(word, str) and not word.isprintable() for word in words):
            raise FormError({"": text.NOT_PRINTABLE})
        try:
            return typed(*words)
        except ValidationError as error:
            raise FormError(_problems(error)) from error

    return call


def _of_runs(site: Site) -> Sequence[Any]:
    """Return the operations on runs."""
    queue = site.queue

    def runs() -> list[dict[str, Any]]:
        """List every run, newest first: name, state, method, times."""
        return [_short(site, queue.name(run)) for run, _ in queue.runs()]

    def run(name: str) -> dict[str, Any]:
        """Return one run: state, outcome, step, total, seconds left, metrics, config."""
        view = watch.look(queue, name)
        return _short(site, name) | {"metrics": list(view.metrics), "config": view.record["config"]}

    def train(images: list[FileData], config: dict[str, Any], name: str = "", method: str = "tensor-lora") -> str:
        """Queue a run on uploaded pictures and captions. `config` holds what differs from the defaults, nested."""
        model = run_config_class(method)
        if not model.needs_images:
            raise ConfigError(text.NOT_FROM_PICTURES.format(method=method))
        found = pictures.check([_uploaded(image) for image in images])
        problems = [f"{item.path.name}: {item.problem}" for item in found if item.problem]
        if problems or not found:
            raise FormError({"data.images": "; ".join(problems) or text.NO_IMAGES})
        data = {**_table(config, "data"), "images": "images"}
        full = _validated(model, {"method": {}, **config, "data": data})
        return queue.name(queue.submit(method, full.model_dump(mode="json"), pictures.named(found), name))

    def stop(name: str) -> str:
        """Ask a run to finish its step, save and end; one that waits ends at once. Returns its state."""
        queue.stop(name)
        return watch.look(queue, name).state

    def resume(name: str) -> str:
        """Put a run that was stopped, interrupted or failed back into the queue. Returns its state."""
        queue.resume(name)
        return watch.look(queue, name).state

    def repeat(name: str, changes: dict[str, Any], label: str = "") -> str:
        """Queue a new run with the settings and pictures of another. `changes`: values by dotted name."""
        return queue.name(queue.repeat(name, changes, label))

    def delete(name: str) -> str:
        """Move a run to the trash. Returns what names it there."""
        return queue.delete(name).identity

    def compare(names: list[str]) -> dict[str, Any]:
        """Compare two to eight runs: the settings that differ, and their newest figures."""
        return asdict(comparison.compare([(name, queue.find(name)) for name in names]))

    return runs, run, train, stop, resume, repeat, delete, compare


def _of_images(site: Site) -> Sequence[Any]:
    """Return the operations on adapters and images."""

    def adapters() -> list[dict[str, Any]]:
        """List the adapters that can be applied: name, path, method, base model, prompt, size."""
        kept = ("name", "method", "base_model", "base_fingerprint", "prompt", "steps", "size", "from_run")
        found = shelf.adapters(site.queue, site.adapters)
        return [{"path": str(item.path), **{key: getattr(item, key) for key in kept}} for item in found]

    def generate(config: dict[str, Any], share: bool = False) -> list[FileData]:
        """Make images and return the files. `config` holds what differs from the defaults; `out` is the server's.

        A device that trains is waited for, unless `share` says to compute beside it; both become slower then.
        """
        made = _validated(GenerateConfig, {**config, "out": site.outputs})
        limits.check(made)
        _check_known(site, made)
        drawing = Drawing([made], site.queue.device, wait=not share)
        drawing.start()
        while not drawing.status.is_over:
            drawing.join(1.0)
        if drawing.status.error:
            raise gr.Error(drawing.status.error, print_exception=False)
        return [gr.FileData(path=str(path), orig_name=path.name).model_dump() for path in drawing.status.saved]

    def verify(image: FileData, key: str = "", alpha: float = 1e-6, search: bool = False) -> dict[str, Any]:
        """Judge whether a file carries the mark of a key, or of any key that counts when `key` is empty."""
        found = verifying.verify(site, _uploaded(image), key, alpha, search)
        values = asdict(found.verdict)
        # Which bits agree would tell the key to whoever may only ask.
        return {name: value for name, value in values.items() if name != "read"} | {
            "key": found.key,
            "owner": found.owner,
        }

    return adapters, generate, verify


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


def _uploaded(image: FileData) -> Path:
    """Return the path of an uploaded file; any other file of the server is refused, whoever names it."""
    named = image.get("path", "") if isinstance(image, dict) else ""
    path = Path(str(named).replace("\0", "")).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise DataError(text.NOT_UPLOADED.format(name=path.name[:100]))
    return path


def _check_known(site: Site, config: GenerateConfig) -> None:
    """Refuse adapters and decoders that are not on the shelf: a request must not look into other folders."""
    found = shelf.adapters(site.queue, site.adapters) if config.adapter else []
    known = {path.resolve() for item in found for path in (item.path, item.file)}
    for spec in config.adapters:
        if spec.path.resolve() not in known:
            raise FormError({"adapter": text.NO_SUCH_ADAPTER.format(name=spec.path.name)})
    decoders = {item.path.resolve() for item in library.decoders([site.decoders])} if config.decoder else set()
    if config.decoder is not None and config.decoder.resolve() not in decoders:
        raise FormError({"decoder": text.NO_SUCH_DECODER.format(name=config.decoder.name)})


def _table(config: Any, name: str) -> dict[str, Any]:
    """Return a part of a request that must be a table of settings."""
    part = config.get(name, {}) if isinstance(config, dict) else None
    if not isinstance(part, dict):
        raise FormError({name: text.NO_TABLE})
    return part


def _validated(model: Any, values: dict[str, Any]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise FormError(_problems(error)) from error


def _problems(error: ValidationError) -> dict[str, str]:
    return {".".join(map(str, item["loc"])): text.problem(item) for item in error.errors(include_url=False)}
