"""One family of errors, so that the command line can tell a user's mistake from a defect."""

from __future__ import annotations

import inspect

import pytest

from lrdiff import errors

CHILDREN = [
    item
    for _, item in inspect.getmembers(errors, inspect.isclass)
    if issubclass(item, Exception) and item is not errors.LrdiffError
]


@pytest.mark.parametrize("kind", CHILDREN, ids=lambda kind: kind.__name__)
def test_every_error_is_a_documented_lrdiff_error(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.LrdiffError)
    assert kind.__doc__
    assert str(kind("what, where, what to do")) == "what, where, what to do"


def test_the_family_is_complete() -> None:
    names = {kind.__name__ for kind in CHILDREN}
    wanted = {"ConfigError", "DataError", "ModelError", "ArtifactError", "TargetError", "ShapeError", "BackendError"}
    assert wanted | {"RunError"} <= names


def test_non_finite_numbers_are_an_error_of_the_run() -> None:
    assert issubclass(errors.NonFiniteError, errors.RunError)
