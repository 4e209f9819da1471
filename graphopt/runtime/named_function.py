"""Functions of the user, named on the command line as ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

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
        module = _of_file(path) if path.suffix == ".py" else importlib.import_module(module_name)
    except (Exception, SystemExit) as cause:  # whatever the user's module raises
        what = f"the module cannot be imported: {type(cause).__name__}: {cause}"
        raise error(what, where=text, must=must, do="Check the path.") from cause
    finally:
        sys.path.remove(added)
    found = getattr(module, name, None)
    if not callable(found):
        raise error(f"the module has no function '{name}'", where=text, must=must)
    return found  # type: ignore[no-any-return]


def _of_file(path: Path) -> ModuleType:
    """Return the module of a file, whatever other module has its name: statistics.py is a good name for a file."""
    name = f"graphopt_user_{path.stem}"
    if path.stem not in sys.modules:
        return importlib.import_module(path.stem)
    for known in (sys.modules[path.stem], sys.modules.get(name)):
        if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == path.resolve():
            return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
