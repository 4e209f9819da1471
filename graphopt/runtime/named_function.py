"""Functions of the user, named on the command line as ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.errors import GraphoptError


def named_function(text: str, *, must: str, error: type[GraphoptError]) -> Callable[..., Any]:
    """Return the function that a text names; its module is imported, from the current folder too.

    Args:
        text: ``package.module:function``, or ``file.py:function``.
        must: What the text must be, for the message.
        error: What to raise where it is not.

    Raises:
        GraphoptError: ``error``: the text has another form, the module does not import, or it has no such function.
    """
    module_name, _, name = text.rpartition(":")
    if not module_name or not name:
        raise error(f"{text!r} names no function", must=must)
    path = Path(module_name)
    added = str(path.resolve().parent) if path.suffix == ".py" else str(Path.cwd())
    sys.path.insert(0, added)
    try:
        module = importlib.import_module(path.stem if path.suffix == ".py" else module_name)
    except Exception as cause:  # whatever the user's module raises
        what = f"the module cannot be imported: {type(cause).__name__}: {cause}"
        raise error(what, where=text, must=must, do="Check the path.") from cause
    finally:
        sys.path.remove(added)
    found = getattr(module, name, None)
    if not callable(found):
        raise error(f"the module has no function '{name}'", where=text, must=must)
    return found  # type: ignore[no-any-return]
