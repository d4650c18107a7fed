"""`lrdiff train`: from flags and files to a run directory, and from there to its result."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from app.commands.compare import with_adapter
from app.commands.console import command, logging_to_stderr, say
from app.commands.flags import read_flags
from app.commands.settings import build, read_file, to_toml
from app.commands.turns import TurnOptions, folder_of, turn
from lrdiff.errors import ConfigError
from trainers.config import RunConfig
from trainers.registry import METHODS, entry, run_config_class
from trainers.rundir import RunDir, create, default_path, open_run

ROOT = Path("runs")
SHORT = {"--images": "--data.images", "--cameras": "--method.cameras"}

ENDINGS = """\
Settings: the defaults, over them the file --config, over that the flags.
Ctrl-C finishes the step, saves, and ends the run as stopped; --resume goes on.
Exit code: 0 finished or stopped, 2 something you can put right, 1 a fault."""


class TrainOptions(TurnOptions):
    """What is asked of the command and does not belong to the run's configuration."""

    config: Path | None = None
    """Settings from a TOML file, or from run.json of an earlier run. Flags go over them."""

    out: Path | None = None
    """New folder for the run. Without it: runs/METHOD-IMAGES-NUMBER."""

    resume: Path | None = None
    """Continue this run from its newest checkpoint, with its own settings."""

    dry_run: bool = False
    """Check everything, print the settings as TOML and what would be trained, and write nothing."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff train`."""
    arguments = with_adapter(_in_full(arguments))
    if not arguments:
        raise ConfigError(f"train what? Write lrdiff train METHOD; methods: {', '.join(METHODS)}")
    if arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0].startswith("-"):
        return _without_method(arguments)
    method, flags = arguments[0], arguments[1:]
    prog, about = f"lrdiff train {method}", about_method(method)
    config_class = run_config_class(method)
    given = read_flags(flags, [TrainOptions, config_class], prog=prog, about=about)
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r}; every setting has a flag, see {prog} --help")
    own = {name: value for name, value in given.values.items() if name in TrainOptions.model_fields}
    settings = {name: value for name, value in given.values.items() if name not in own}
    options = build(TrainOptions, own)
    if options.resume is not None:
        return _resume(options, {**settings, **own}, method)
    config = _configure(method, config_class, options.config, settings)
    return _dry_run(method, config, options.out) if options.dry_run else _train(method, config, options)


def _in_full(arguments: list[str]) -> list[str]:
    """Return the words with short flags in full."""
    parts = [(flag, equals + value) for flag, equals, value in (word.partition("=") for word in arguments)]
    return [SHORT.get(flag, flag) + value for flag, value in parts]


def overview() -> str:
    """Return the help of `lrdiff train` without a method."""
    width = max(map(len, METHODS))
    lines = [f"  {name:<{width}}  {item.summary}" for name, item in METHODS.items()]
    return "\n".join(
        [
            "usage: lrdiff train METHOD --data.images DIR [flags]",
            "       lrdiff train --adapter NAME --data.images DIR [flags]",
            "       lrdiff train METHOD --config FILE.toml [flags]",
            "       lrdiff train --resume RUN",
            "",
            "methods:",
            *lines,
            "",
            "lrdiff train METHOD --help lists every setting of a method.",
            ENDINGS,
        ]
    )


def about_method(method: str) -> str:
    """Return what the help of a method says before its flags."""
    summary = entry(method).summary
    config = run_config_class(method)
    photos = " --data.images photos" if config.needs_images else ""
    if photos and "data.prompt" not in config.unread:
        photos += ' --data.prompt "a photo of sks mug"'
    # tyro keeps the line breaks before indented lines and joins the lines of other text.
    return f"""{summary[0].upper()}{summary[1:]}.

examples:
  lrdiff train {method}{photos}
  lrdiff train {method} --config my.toml --optim.steps 500
  lrdiff train --resume runs/NAME

notes:
{textwrap.indent(ENDINGS, "  ")}"""


def _without_method(arguments: list[str]) -> int:
    """Run `lrdiff train --resume RUN`; everything else needs a method."""
    words = " ".join(arguments)
    if not any(word.partition("=")[0] == "--resume" for word in arguments):
        raise ConfigError(
            f"the method comes first: lrdiff train METHOD {words}; methods: {', '.join(METHODS)} "
            "(only --resume RUN needs none)"
        )
    given = read_flags(
        arguments, [TrainOptions], prog="lrdiff train", about="Continue a run from its newest checkpoint."
    )
    if given.words:
        raise ConfigError(f"unexpected word {given.words[0]!r} beside --resume")
    return _resume(build(TrainOptions, given.values), given.values, "")


def _configure(method: str, config_class: type[RunConfig[Any]], path: Path | None, flags: Mapping[str, Any]) -> Any:
    """Return the run's configuration, with folders written in full so that the run can be resumed from anywhere."""
    file = _from_file(path, method) if path else {}
    # The method's table may be left out: all its settings have defaults.
    config = build(config_class, {"method": {}} | dict(flags), {"method": {}} | file if file else None, path)
    if config.needs_images and "images" not in config.data.model_fields_set:
        raise ConfigError("data.images: no pictures to learn from; give a folder with --data.images DIR")
    folder = Path(config.model).expanduser()
    if "/" in config.model and folder.is_dir():
        config = config.model_copy(update={"model": os.path.abspath(folder)})
    if not config.has_images and (config.needs_images or "images" in flags.get("data", {})):
        # "." was given, which is also what stands for no folder.
        config = config.model_copy(update={"data": config.data.model_copy(update={"images": Path.cwd()})})
    return _anchored(config)


def _from_file(path: Path, method: str) -> dict[str, Any]:
    """Return the settings of a TOML file or of a run's record, whose method must be this one."""
    values = read_file(path)
    if "config" not in values:
        return values
    if values.get("method") != method:
        made = values.get("method")
        raise ConfigError(f"--config: {path} is a run of {made}, not of {method}; use lrdiff train {made}")
    if not isinstance(values["config"], dict):
        raise ConfigError(f"--config: {path} is damaged: its config is no table")
    return values["config"]


def _anchored(config: BaseModel) -> Any:
    """Return the settings with every path absolute; an empty one stays, since it stands for none."""
    changed: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, BaseModel):
            changed[name] = _anchored(value)
        elif isinstance(value, Path) and value != Path():
            changed[name] = Path(os.path.abspath(value.expanduser()))
    return config.model_copy(update=changed)


def _train(method: str, config: RunConfig[Any], options: TrainOptions) -> int:
    """Make the run directory and train. What can be refused at once is refused before anything is written."""
    path = _target(method, config, options.out)
    _check_inputs(config)
    from trainers.run import execute

    with logging_to_stderr():
        config = config.settled()
    with turn(folder_of(path), options.share) as held_for:
        # Named anew: while this waited, others may have taken the number.
        run = create(_target(method, config, options.out), method, config.model_dump(mode="json"))
        held_for(run.path)
        say(f"run: {run.path}")
        with logging_to_stderr():
            outcome = execute(run)
    _conclude(run, outcome)
    return 0


def _dry_run(method: str, config: RunConfig[Any], out: Path | None) -> int:
    """Print settings and plan."""
    path = _target(method, config, out)
    _check_inputs(config)
    from trainers.engine import Engine
    from trainers.preflight import preflight
    from trainers.run import build as build_method

    with logging_to_stderr():
        engine = Engine(config.precision)
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        lines = preflight(build_method(method, config, engine), config, engine, existing)
    print(f"# lrdiff train {method} --config THIS_FILE\n{to_toml(config)}", end="")
    sys.stdout.flush()
    say("\n".join([*lines, f"would be written to: {path}", "dry run: nothing was trained, nothing was written"]))
    return 0


def _resume(options: TrainOptions, given: Mapping[str, Any], method: str) -> int:
    """Continue a run from its own record. Settings beside --resume are refused: they would not be followed."""
    assert options.resume is not None
    path, kept = options.resume, ("resume", "share")
    others = [f"--{name}" for name in _dotted({key: value for key, value in given.items() if key not in kept})]
    if others:
        raise ConfigError(
            f"--resume continues a run with its own settings; leave out {', '.join(others)}, "
            f"or start a new run with --config {path}/run.json"
        )
    run = open_run(path.expanduser())
    made = run.read().get("method")
    if method and made != method:
        raise ConfigError(f"--resume: {path} is a run of {made}, not of {method}; use lrdiff train --resume {path}")
    from trainers.run import execute

    with turn(folder_of(run.path), options.share) as held_for:
        held_for(run.path)
        with logging_to_stderr():
            outcome = execute(run, resume=True)
    _conclude(run, outcome)
    return 0


def _dotted(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the flags of nested settings, without dashes before them."""
    names = []
    for name, value in values.items():
        path = f"{prefix}{name.replace('_', '-')}"
        names += _dotted(value, f"{path}.") if isinstance(value, Mapping) else [path]
    return names


def _target(method: str, config: RunConfig[Any], out: Path | None) -> Path:
    label = config.data.images.name if config.has_images else Path(config.model).name
    return out.expanduser() if out is not None else default_path(ROOT, method, label)


def _check_inputs(config: RunConfig[Any]) -> None:
    """Refuse absent devices and models and folders without pictures before a run directory is made."""
    from lrdiff import backbones
    from trainers.data import find_samples

    backbones.pick_device(config.precision.device)
    if config.needs_images or config.has_images:
        find_samples(config.data.images, config.data.prompt)
    if config.data.validation is not None:
        find_samples(config.data.validation, config.data.prompt, "data.validation")
    config.find_model()


def _conclude(run: RunDir, outcome: str) -> None:
    """Say where the result is and how to use it."""
    record = run.read()
    if outcome == "stopped":
        say(f"stopped at step {record['step']}: {record['outcome']}")
        say(f"to go on:   {command('lrdiff', 'train', '--resume', run.path)}")
    if run.artifact_path.is_file():
        say(f"result:     {run.artifact_path} ({run.artifact_path.stat().st_size / 1e6:.2f} MB)")
        say(f"to use it:  {_next_command(run, record['config'])}")


def _next_command(run: RunDir, config: Mapping[str, Any]) -> str:
    from lrdiff.artifact import read_header

    header = read_header(run.artifact_path)
    if header.component == "triplane":
        return command("lrdiff", "triplane", "render", config["model"], "--adapter", run.path, "--out", "turn.mp4")
    if header.component == "vae":
        return command("lrdiff", "watermark", "fuse", run.path, "--out", "marked-decoder")
    prompt = header.extra.get("prompt", config["data"]["prompt"])
    words = ["lrdiff", "generate", "--model", config["model"], "--adapter", f"{run.path}:1", "--prompt", prompt]
    return command(*words, "--count", 4, "--out", "outputs")
