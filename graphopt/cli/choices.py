"""Values of options that a pass offers in this version, and a clear refusal of those that it does not yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli.parser import nearest
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


def offered(pass_name: str, option: str) -> list[str]:
    """Return the words that an option of a pass takes.

    Args:
        pass_name: Name of the pass.
        option: Name of the option, whose type is a choice of words.
    """
    from graphopt.rewrite.options import option_model
    from graphopt.rewrite.registry import pass_class

    schema = option_model(pass_class(pass_name)).model_json_schema()["properties"][option]
    alternatives = [schema, *schema.get("anyOf", [])]
    words = [word for each in alternatives for word in (each.get("enum") or [each.get("const")]) if word is not None]
    return [str(word) for word in words]


def require(value: str, built: Sequence[str], *, flag: str, later: Sequence[str] = ()) -> str:
    """Return the value if this version has it.

    Args:
        value: What the user asked for.
        built: What there is.
        flag: The flag, for the message.
        later: Values that the interface reserves for later versions.

    Raises:
        UsageError: There is no such value, or not yet.
    """
    if value in built:
        return value
    known = f"This version has {', '.join(built)}"
    if value in later:
        raise UsageError(f"'{value}' is not built into this version yet", where=flag, must=known)
    raise UsageError(f"'{value}' is unknown", where=flag, must=known, do=nearest(value, [*built, *later]))
