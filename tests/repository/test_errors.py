"""Every error class: a code of its own, a message that reads, and an example in its documentation."""

from __future__ import annotations

import inspect
import pickle  # noqa: TID251 - errors cross process borders, which nothing else here does
import re

import pytest

from graphopt import errors

LETTERS = "RWGADCPVQKXU"
CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, errors.GraphoptError) and value is not errors.GraphoptError
]


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_code_and_exit_status_are_legal(cls: type[errors.GraphoptError]) -> None:
    assert re.fullmatch(rf"GO-[{LETTERS}]\d{{3}}", cls.code)
    assert cls.exit_code in {1, 2, 3, 4, 5}
    parent = cls.__mro__[1]
    if parent is not errors.GraphoptError and issubclass(parent, errors.GraphoptError):
        assert cls.code[3] == parent.code[3], "a family shares its letter"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_message_has_every_part_and_survives_a_process_border(cls: type[errors.GraphoptError]) -> None:
    error = cls("it is so", where="there", must="It must be otherwise", do="Change it")
    assert str(error) == f"{cls.code} there: it is so. It must be otherwise. Change it."
    assert str(cls("it is so")) == f"{cls.code} it is so."
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (cls, str(error))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_documentation_shows_what_fails_and_what_does_not(cls: type[errors.GraphoptError]) -> None:
    text = inspect.getdoc(cls) or ""
    assert re.search(r"\bFails: \S", text), f"{cls.__name__} has no failing example"
    assert re.search(r"\bFixed: \S", text), f"{cls.__name__} has no fixed example"
