"""Functions of the user by name: files are found whatever they are called, and what they raise is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from graphopt.errors import DataError
from graphopt.runtime.named_function import named_function

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["statistics", "json", "a_name_of_its_own"])
def test_a_file_may_be_called_like_a_module_that_is_loaded(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text("calls = []\ndef feeds():\n    calls.append(1)\n    return len(calls)\n")
    for count in (1, 2):
        found = named_function(f"{file}:feeds", must="a function", error=DataError)
        assert found() == count


@pytest.mark.parametrize("text", ["raise RuntimeError('no')", "import sys; sys.exit(2)", "import nothing_of_this_name"])
def test_a_module_that_does_not_import_is_the_users(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken_module_of_a_user.py"
    file.write_text(text)
    with pytest.raises(DataError, match="the module cannot be imported"):
        named_function(f"{file}:feeds", must="a function", error=DataError)
