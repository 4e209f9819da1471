"""The outputs of two models side by side, on the same feeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.errors import CheckFailedError
from graphopt.runtime.inputs import output_names
from graphopt.runtime.session import Feed, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def output_pairs(
    first: Any, second: Any, feeds: Iterable[Feed]
) -> Iterator[tuple[Feed, dict[str, Any], dict[str, Any]]]:
    """Yield (feed, outputs of the first session, outputs of the second) for every feed.

    Args:
        first: A session.
        second: A session of a model with the same outputs by name.
        feeds: The feeds; nothing is kept of them.

    Raises:
        CheckFailedError: The outputs have different names.
        DataError: A feed does not fit.
    """
    names, others = output_names(first), output_names(second)
    if sorted(names) != sorted(others):
        raise CheckFailedError(
            f"the outputs are {', '.join(names)} and {', '.join(others)}",
            must="Models that are compared have the same outputs.",
        )
    for feed in feeds:
        yield feed, run(first, feed, names), run(second, feed, names)
