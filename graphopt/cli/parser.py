"""Argument parsing that all verbs share: common options, value types, errors that name the nearest valid word."""

from __future__ import annotations

import argparse
import difflib
from typing import TYPE_CHECKING, Never

from graphopt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Parser(argparse.ArgumentParser):
    """The parser of one verb; `parse` adds the options that every verb takes, so that they stand last on its page.

    Args:
        verb: Name of the verb.
        summary: One line for its help page.
    """

    def __init__(self, verb: str, summary: str) -> None:
        super().__init__(
            prog=f"graphopt {verb}",
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def _add_common(self) -> None:
        common = self.add_argument_group("every verb")
        common.add_argument(
            "--verify",
            type=one_of("off", "fast", "full"),
            default="fast",
            metavar="LEVEL",
            help="off, fast (legality of what changed) or full (checker and a run after each pass); default fast",
        )
        common.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
        common.add_argument(
            "--seed", type=whole(0), default=0, metavar="N", help="seed of everything random; default 0"
        )
        common.add_argument("--force", action="store_true", help="overwrite an existing output")
        common.add_argument("--quiet", "-q", action="store_true", help="no log and no progress bar on stderr")
        common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace | None:
        """Parse; None when the help page was asked for and printed.

        Raises:
            UsageError: An argument is missing, unknown or has a wrong value.
        """
        self._add_common()
        if any(argument in {"-h", "--help"} for argument in _before_separator(arguments)):
            from graphopt.cli.terminal import write

            write(self.format_help())
            return None
        namespace, extras = self.parse_known_args(list(arguments))
        if extras:
            self._refuse(extras[0])
        return namespace

    def _refuse(self, argument: str) -> Never:
        if not argument.startswith("-"):
            raise UsageError(
                f"unexpected argument '{argument}'", where=self.prog, do=f"Usage: {self.format_usage()[7:].strip()}"
            )
        flag = argument.split("=", 1)[0]
        known = [option for action in self._actions for option in action.option_strings if len(option) > 2]
        raise UsageError(
            f"unknown option '{flag}'", where=self.prog, do=nearest(flag, known) or f"Run {self.prog} --help"
        )

    def error(self, message: str) -> Never:
        """Raise what argparse found wrong as a usage error.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            message.removeprefix("argument ").replace("the following arguments are required", "missing"),
            where=self.prog,
            do=f"Run {self.prog} --help",
        )


def add_set(to: argparse._ActionsContainer) -> None:
    """Add the option that changes options of passes to a parser or a group of one."""
    to.add_argument(
        "--set",
        dest="options",
        type=assignment,
        action="append",
        default=[],
        metavar="PASS.OPTION=VALUE",
        help="change an option of a pass; may be repeated",
    )


def add_skip(to: argparse._ActionsContainer) -> None:
    """Add the option that leaves passes out to a parser or a group of one."""
    to.add_argument("--skip", action="append", default=[], metavar="PASS", help="leave a pass out; may be repeated")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "Did you mean ...?" for the closest known word, or an empty string."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {found[0]}?" if found else ""


def one_of(*choices: str) -> Callable[[str], str]:
    """Return an argument type that accepts these words and suggests the nearest for any other."""

    def convert(text: str) -> str:
        if text in choices:
            return text
        hint = nearest(text, choices)
        message = f"'{text}' is not one of {', '.join(choices)}. {hint}".strip()
        raise argparse.ArgumentTypeError(message)

    return convert


def whole(low: int) -> Callable[[str], int]:
    """Return an argument type for whole numbers of at least `low`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            message = f"'{text}' is not a whole number of at least {low}"
            raise argparse.ArgumentTypeError(message)
        return value

    return convert


def share(text: str) -> float:
    """Convert a share: 0 to 1.

    Raises:
        argparse.ArgumentTypeError: The text is no number in that range.
    """
    value = _number(text)
    if not 0.0 <= value <= 1.0:
        hint = f". Did you mean {value / 100:g}?" if 1.0 < value <= 100.0 else ""
        message = f"'{text}' is not a share from 0 to 1{hint}"
        raise argparse.ArgumentTypeError(message)
    return value


def drop(text: str) -> float:
    """Convert a largest allowed loss: a number of at least 0.

    Raises:
        argparse.ArgumentTypeError: The text is no such number.
    """
    value = _number(text)
    if not 0.0 <= value < float("inf"):
        message = f"'{text}' is not a number of at least 0"
        raise argparse.ArgumentTypeError(message)
    return value


def assignment(text: str) -> tuple[str, object]:
    """Convert ``PASS.OPTION=VALUE``; the value is read as YAML, so 0.5, true and [a, b] have their types.

    Raises:
        argparse.ArgumentTypeError: The text does not have this form.
    """
    key, equals, value = text.partition("=")
    name, dot, option = key.partition(".")
    if not (equals and dot and name and option):
        message = f"'{text}' does not have the form PASS.OPTION=VALUE, for example insert-qdq.percentile=99.9"
        raise argparse.ArgumentTypeError(message)
    import yaml

    try:
        parsed: object = yaml.safe_load(value)
    except yaml.YAMLError as error:
        message = f"the value of '{key}' is not valid YAML: {value!r}"
        raise argparse.ArgumentTypeError(message) from error
    return key.strip(), parsed


def size(text: str) -> tuple[str, int]:
    """Convert ``NAME=N``: the size of a symbolic dimension.

    Raises:
        argparse.ArgumentTypeError: The text does not have this form.
    """
    name, equals, number = text.rpartition("=")
    if not (name and equals and number.isascii() and number.isdigit()):
        message = f"'{text}' does not have the form NAME=N, for example sequence=128"
        raise argparse.ArgumentTypeError(message)
    return name, int(number)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        message = f"'{text}' is not a number"
        raise argparse.ArgumentTypeError(message) from None


def _before_separator(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments
