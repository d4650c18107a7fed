"""Configuration models as web forms: a component for every field, a model from the values, errors back to their fields.

fields = form_fields(RunConfig[...])          every leaf of the model, by dotted path
form = Form(model); form.add("optim.lr")      renders the component where it is called
form.read(values) -> model                    or FormError with one message per field
form.write(config) -> {component: value}      the other direction
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from app import text
from lrdiff.errors import ConfigError

Kind = Literal["flag", "choice", "integer", "number", "text", "path", "texts", "numbers"]
Values = Mapping[Component, Any]

LISTS: dict[Any, Kind] = {str: "texts", float: "numbers", int: "numbers"}
SINGLES: dict[Any, Kind] = {bool: "flag", int: "integer", float: "number", str: "text", Path: "path"}


class FormError(ConfigError):
    """Values that make no valid configuration.

    Attributes:
        problems: Message by dotted path; the empty path is for problems of several fields together.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__("\n".join(f"{path}: {message}".removeprefix(": ") for path, message in self.problems.items()))


@dataclass(frozen=True, slots=True)
class Field:
    """One leaf of a configuration model.

    Attributes:
        path: Dotted path from the root, for example "optim.lr".
        kind: What sort of value it takes, which decides the component.
        default: Default in the model; None when there is none.
        help: The field's docstring.
        choices: Allowed values of a choice.
        optional: Whether None is a value.
    """

    path: str
    kind: Kind
    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    optional: bool = False


def form_fields(model: type[BaseModel], prefix: str = "", defaults: BaseModel | None = None) -> list[Field]:
    """List every leaf of a configuration model in order of definition.

    Args:
        model: A pydantic model; fields that are models themselves are entered.
        prefix: Dotted path of `model` inside its root, with a dot at the end, or empty.
        defaults: Values that stand in for the model's own defaults.

    Raises:
        ConfigError: A field has a type for which there is no component.
    """
    found: list[Field] = []
    for name, info in model.model_fields.items():
        path = prefix + name
        default = getattr(defaults, name) if defaults is not None else _default(info)
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += form_fields(inner, f"{path}.", default)
        else:
            found.append(_leaf(path, inner, default, info.description or ""))
    return found


def _default(info: FieldInfo) -> Any:
    return None if info.is_required() else info.get_default(call_default_factory=True)


def _leaf(path: str, annotation: Any, default: Any, description: str) -> Field:
    kept = annotation
    optional = False
    if get_origin(annotation) in (Union, types.UnionType):
        members = [part for part in get_args(annotation) if part is not type(None)]
        optional = len(members) < len(get_args(annotation))
        kept = members[0] if len(members) == 1 else annotation
    if get_origin(kept) is Annotated:
        # Bounds are the model's business.
        kept = get_args(kept)[0]
    if get_origin(kept) is Literal:
        return Field(path, "choice", default, description, get_args(kept), optional)
    kind = LISTS.get(get_args(kept)[0]) if get_origin(kept) is tuple else SINGLES.get(kept)
    if kind is None:
        raise ConfigError(f"{path}: the form has no component for the type {annotation}; add one in app/form.py")
    return Field(path, kind, default, description, (), optional)


class Form:
    """Binds the fields of a model to components, one to one."""

    def __init__(self, model: type[BaseModel], skip: Iterable[str] = ()) -> None:
        """Start with no component.

        Args:
            model: The configuration model.
            skip: Paths that the page fills in by itself, without a component.
        """
        self.model = model
        self.fields = {field.path: field for field in form_fields(model)}
        self.skipped = frozenset(skip)
        self.components: dict[str, Component] = {}
        unknown = self.skipped - set(self.fields)
        if unknown:
            raise ConfigError(f"{model.__name__} has no field {', '.join(sorted(unknown))}")

    def missing(self, prefix: str = "") -> list[str]:
        """Return the paths below `prefix` that have no component yet, in order of definition."""
        return [p for p in self.fields if p.startswith(prefix) and p not in self.components and p not in self.skipped]

    def add(self, path: str, **style: Any) -> Component:
        """Render the component of a field at this place of the page.

        Args:
            path: A field of the model that has no component yet.
            style: Arguments of the gradio component that stand in for the generated ones.

        Raises:
            ConfigError: The path is unknown or already has a component.
        """
        return self.bind(path, _component(self.field(path), style))

    def bind(self, path: str, component: Component) -> Component:
        """Take an already rendered component for a field. Raises `ConfigError` as `add` does."""
        if path in self.components or path in self.skipped:
            raise ConfigError(f"{path}: has its component already")
        self.field(path)
        self.components[path] = component
        return component

    def field(self, path: str) -> Field:
        """Return a field by its path. Raises `ConfigError` when there is none."""
        if path not in self.fields:
            raise ConfigError(f"{self.model.__name__} has no field {path}")
        return self.fields[path]

    def read(self, values: Values, **given: Any) -> Any:
        """Return the configuration that the components' values describe.

        Args:
            values: Value by component, as gradio hands them to a listener with a set of inputs.
            given: Values by path, with `__` for dots, that stand in for a component's or fill a skipped field.

        Raises:
            FormError: The values are not valid; one message per field.
        """
        problems: dict[str, str] = {}
        tree: dict[str, Any] = {}
        filled = {path.replace("__", "."): value for path, value in given.items()}
        for path, component in self.components.items():
            if path not in filled:
                try:
                    filled[path] = from_component(self.fields[path], values[component])
                except ValueError as error:
                    problems[path] = str(error)
        for path, value in filled.items():
            _put(tree, path, value)
        try:
            config = self.model.model_validate(tree)
        except ValidationError as error:
            found = {self._owner(item["loc"]): text.problem(item) for item in error.errors(include_url=False)}
            raise FormError(found | problems) from error
        if problems:
            raise FormError(problems)
        return config

    def write(self, config: BaseModel, paths: Iterable[str] | None = None) -> dict[Component, Any]:
        """Return the components' values for a configuration.

        Args:
            config: An instance of the model.
            paths: Only these fields; every one when left out.
        """
        wanted = self.components if paths is None else {path: self.components[path] for path in paths}
        return {part: to_component(self.fields[path], _get(config, path)) for path, part in wanted.items()}

    def validator(self, check: Callable[[Values], Mapping[str, str]]) -> Callable[[Values], list[dict[str, Any]]]:
        """Return a gradio validator that marks each field with its problem.

        Args:
            check: Problems by path for the values; an empty mapping lets the event go on.
        """
        path_of = {component: path for path, component in self.components.items()}

        def validate(values: Values) -> list[dict[str, Any]]:
            problems = dict(check(values))
            # gradio passes a set of inputs in the order of their ids and wants the answers in that order.
            ordered = sorted(values, key=lambda component: component._id)
            return [gr.validate(path_of.get(c) not in problems, problems.get(path_of.get(c, "?"), "")) for c in ordered]

        return validate

    def _owner(self, location: tuple[int | str, ...]) -> str:
        """Return the field that an error belongs to: the longest known path that its location starts with."""
        words = [str(part) for part in location]
        while words and ".".join(words) not in self.fields:
            words.pop()
        return ".".join(words)


def _component(field: Field, style: Mapping[str, Any]) -> Component:
    """Make the component of a field."""
    value = to_component(field, field.default)
    made: dict[str, Any] = {
        "label": text.label(field.path),
        "info": text.help(field),
        "interactive": True,
        "value": value,
    }
    kind: type[Component] = gr.Textbox
    match field.kind:
        case "flag":
            kind = gr.Checkbox
        case "choice":
            kind = gr.Dropdown
            # With their type: 64 is a choice where "64" is none.
            made["choices"] = [(str(choice), choice) for choice in field.choices]
        case "integer" | "number":
            kind = gr.Number
            # "any" keeps the browser from calling 0.002 invalid; bounds are checked by the model, in words.
            made["step"] = 1 if field.kind == "integer" else "any"
        case "texts":
            made["lines"] = 2
        case _:
            made["max_lines"] = 1
    return kind(**(made | dict(style)))


def from_component(field: Field, value: Any) -> Any:
    """Turn a component's value into what the model takes. Raises `ValueError` with a message for the field."""
    match field.kind:
        case "flag" | "choice":
            return value
        case "integer" | "number":
            if value is None and not field.optional:
                raise ValueError(text.EMPTY_NUMBER)
            return value
        case "texts":
            return [line.strip() for line in (value or "").splitlines() if line.strip()]
        case "numbers":
            return [_number(word) for word in (value or "").replace(",", " ").split()]
        case "path":
            stripped = (value or "").strip()
            return None if field.optional and not stripped else stripped
        case _:
            return (value or "").strip()


def to_component(field: Field, value: Any) -> Any:
    """Turn a model's value into what the component shows."""
    match field.kind:
        case "texts":
            return "\n".join(value or ())
        case "numbers":
            return ", ".join(f"{number:g}" for number in value or ())
        case "path":
            return "" if value in (None, Path()) else str(value)
        case "text":
            return value or ""
        case _:
            return value


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise ValueError(text.NOT_A_NUMBER.format(word=word)) from error


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *branches, leaf = path.split(".")
    for branch in branches:
        tree = tree.setdefault(branch, {})
    tree[leaf] = value


def _get(config: BaseModel, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value
