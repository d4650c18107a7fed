"""Command-line flags from configuration models. The only module that imports tyro.

tyro splits the words of the command line and draws the help. It hands back only what was given, as plain words: what
they mean is decided by pydantic, once, after file and flags were laid over each other. So a bad value gets the same
message from a flag, a file or a form, and a setting that was not given is never mistaken for one that was.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import shlex
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from lrdiff.errors import ConfigError
from trainers.config import Settings

METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
Models = Sequence[type[BaseModel]]


class Options(Settings):
    """Base of what is asked of a command itself. It never comes from a file, so its switches need no --no- form."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a command line said.

    Attributes:
        values: Nested settings by field name; only those that were given.
        words: Words that belong to no flag, in order.
    """

    values: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()


class Everything(dict[str, Any]):
    """Stands for all models of a command together where tyro wants one type."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a field is written on the command line.

    Attributes:
        element: Its type, or the type of one of its values.
        many: It takes several values.
        optional: It may be none.
    """

    element: Any
    many: bool = False
    optional: bool = False


def read_flags(arguments: Sequence[str], models: Models, *, prog: str, about: str) -> Given:
    """Read the flags of one or several models, whose fields share one name space.

    Args:
        arguments: Words of the command line after the command.
        models: Nested models become dotted flags: `--optim.lr`.
        prog: The command, as the help shows it.
        about: What the help says before the flags.

    Returns:
        What was given. Nothing is validated yet.

    Raises:
        ConfigError: An unknown flag, a flag without its value, or one given twice. One line per problem.
        SystemExit: Code 0, after the help was printed.
    """
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            raw, rest = tyro.cli(
                Everything,
                args=list(arguments),
                prog=prog,
                description=about,
                registry=_registry(models),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise ConfigError(_without_value(arguments, models) or complaint.getvalue().strip()) from None
    problems = [_unknown(word, models, prog) for word in rest if word.startswith("-") and word != "-"]
    values = _collect(models, raw, "--", problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return Given(values, tuple(rest))


def flag_names(models: Models, prefix: str = "--") -> list[str]:
    """Return every flag of the models, for example `--optim.lr`."""
    names = []
    for name, annotation in _fields(models):
        flag = prefix + _spelled(name)
        names += flag_names([annotation], f"{flag}.") if _is_model(annotation) else [flag]
    return names


def _registry(models: Models) -> Any:
    """Teach tyro to take models apart without ever building one."""
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

    registry = ConstructorRegistry()

    @registry.struct_rule
    def take_apart(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type is Everything:
            fields = [_field(model, None, name) for model in models for name in model.model_fields]
        elif _is_model(info.type):
            default = info.default if isinstance(info.default, BaseModel) else None
            fields = [_field(info.type, default, name) for name in info.type.model_fields]
        else:
            return None
        return StructConstructorSpec(instantiate=dict, fields=tuple(fields))

    return registry


def _field(model: type[BaseModel], instance: BaseModel | None, name: str) -> Any:
    """Describe one field to tyro. Every leaf may be repeated, and its value is the list of its occurrences."""
    import tyro
    from tyro.constructors import PrimitiveConstructorSpec, StructFieldSpec

    info = model.model_fields[name]
    default = getattr(instance, name) if instance else info.get_default(call_default_factory=True)
    help_text = " ".join((info.description or "").split())
    annotation: Any = info.annotation
    if _is_model(annotation):
        start = default if isinstance(default, BaseModel) else tyro.MISSING_NONPROP
        return StructFieldSpec(name, annotation, start, help_text)
    kind = _kind(annotation)
    label = tyro.conf.arg(name=_spelled(name), help_behavior_hint=_default_label(default))
    if kind.element is bool:
        switch: Any = tyro.conf.DisallowNone[bool | None]
        if issubclass(model, Options):
            switch = tyro.conf.FlagCreatePairsOff[switch]
        labelled: Any = Annotated[switch, label]
        return StructFieldSpec(name, labelled, None, help_text)
    spec = PrimitiveConstructorSpec(
        nargs="*" if kind.many else 1,
        metavar=_metavar(kind),
        instance_from_str=lambda words: words,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )
    repeated: Any = Annotated[tyro.conf.UseAppendAction[list[Annotated[str, spec]]], label]
    return StructFieldSpec(name, repeated, [], help_text)


def _collect(models: Models, raw: dict[str, Any], prefix: str, problems: list[str]) -> dict[str, Any]:
    """Turn tyro's nested occurrences into the settings that were given."""
    values = {}
    for name, annotation in _fields(models):
        flag, found = prefix + _spelled(name), raw[name]
        if _is_model(annotation):
            nested = _collect([annotation], found, f"{flag}.", problems)
            if nested:
                values[name] = nested
            continue
        kind = _kind(annotation)
        if kind.element is bool:
            if found is not None:
                values[name] = found
        elif kind.many and found:
            values[name] = [_value(word, kind) for words in found for word in words]
        elif found:
            values[name] = _value(found[0][0], kind)
            if len(found) > 1:
                problems.append(f"{flag}: given {len(found)} times, but it takes one value")
    return values


def _value(word: str, kind: Kind) -> Any:
    """Return a word as a number where the field is one, so that messages show -1 and not '-1'; else as it is."""
    if kind.optional and word.lower() == "none":
        return None
    for number in {int: (int, float), float: (float,)}.get(kind.element, ()):
        with contextlib.suppress(ValueError):
            return number(word)
    return word


def _kind(annotation: Any) -> Kind:
    """Tell how a field of this type is written."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin in (Union, types.UnionType):
        inner = [item for item in arguments if item is not type(None)]
        if len(inner) == 1:
            kind = _kind(inner[0])
            return Kind(kind.element, kind.many, optional=True)
    elif origin in (tuple, list):
        return Kind(_kind(arguments[0]).element, many=True)
    elif origin is Literal or annotation in METAVARS or annotation is bool:
        return Kind(annotation)
    raise TypeError(f"no flag can be made for a field of type {annotation}")


def _metavar(kind: Kind) -> str:
    choices = get_args(kind.element)
    text = f"{{{','.join(map(str, choices))}}}" if choices else METAVARS[kind.element]
    return f"{text} ..." if kind.many else text


def _default_label(default: Any) -> str:
    """Return the default as the help shows it: nothing for what is empty and for switches that are off."""
    if default in (False, None, (), "", Path()) and type(default) not in (int, float):
        return ""
    words = default if isinstance(default, tuple | list) else [default]
    return f"(default: {' '.join('yes' if word is True else shlex.quote(str(word)) for word in words)})"


def _spelled(name: str) -> str:
    """Return a field's name as it is in a flag. A final underscore keeps clear of pydantic's own names: json_."""
    return name.rstrip("_").replace("_", "-")


def _fields(models: Models) -> Iterator[tuple[str, Any]]:
    for model in models:
        for name, info in model.model_fields.items():
            yield name, info.annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _unknown(word: str, models: Models, prog: str) -> str:
    """Say that a flag is unknown, and which known one is near."""
    flag = word.partition("=")[0]
    names = flag_names(models)
    # People leave the group out: --lr is meant as --optim.lr.
    same_end = [name for name in names if name.rpartition(".")[2] == flag.lstrip("-").replace("_", "-")]
    near = same_end or difflib.get_close_matches(flag.replace("_", "-"), names, n=1, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see {prog} --help"
    return f"unknown flag {flag}; {hint}"


def _without_value(arguments: Sequence[str], models: Models) -> str:
    """Say which flags lack their value: the one thing that tyro itself refuses, and draws a box about."""
    names = set(flag_names(models))
    pairs = zip(arguments, [*arguments[1:], "-"], strict=True)
    flags = [word for word, after in pairs if word.replace("_", "-") in names and after.startswith("-")]
    return "\n".join(f"{flag}: needs a value; if it begins with a dash, write {flag}=VALUE" for flag in flags)
