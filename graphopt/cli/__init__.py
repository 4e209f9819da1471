"""The command line: one module per verb, each only parses arguments and calls the library.

`main` turns errors into one message on stderr and an exit status: 0 done, 1 internal error, 2 usage or recipe, 3 model
invalid or unsupported, 4 budget or check not met, 5 optional dependency missing, 130 interrupted. stdout carries the
result alone. Nothing heavy is imported before a verb needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
import traceback
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graphopt import __version__
from graphopt.cli.parser import Parser, nearest
from graphopt.errors import AccessError, GraphoptError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERBS = {
    "compile": "make a smaller, faster model with a report, as a bundle folder",
    "simplify": "optimize the graph only; standard operators, same results",
    "prune": "set weights to zero",
    "quantize": "store weights and activations in few bits",
    "check": "compare the outputs of two models",
    "diff": "show what differs between two models",
    "inspect": "show what a model consists of",
    "bench": "time models in turn, in one process",
    "audit": "show what the runtime fuses and what it leaves",
    "calibrate": "choose the ranges of activations; merge those of shards",
    "statistics": "collect what layers read, in shards; merge and show it",
    "sensitivity": "measure what compressing each layer alone costs",
    "debug-quantization": "find where a quantized model departs from its float one",
    "tune": "measure which kernels are faster than dense operators here",
    "bisect": "find the first wrong patch of a recipe",
    "passes": "list the passes, or explain one",
    "recipe": "list, show and validate recipes; print the schemas",
    "doctor": "check this installation and this machine",
    "demo": "compile two small models that come with graphopt",
}
LATER = ("convert",)
"""Verbs that the interface reserves for later versions."""
TRACEBACK_VARIABLE = "GRAPHOPT_TRACEBACK"
INTERRUPTED = "interrupted: nothing was left half-written"
WITHOUT_NUMPY = ("doctor",)
"""Verbs that must run where numpy does not."""
_REFUSALS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EMFILE,
}
"""What the system may say to a path without graphopt being wrong."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments without the program's name; those of the process by default.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get(TRACEBACK_VARIABLE, "") not in {"", "0"}
    interrupts: list[int] = []
    try:
        with _noted_interrupts(interrupts), warnings.catch_warnings():
            if not debug and not sys.warnoptions:  # warnings of libraries are for their developers
                warnings.simplefilter("ignore")
            return _run(arguments)
    except GraphoptError as error:
        return _fail(f"error: {error}", error.exit_code, debug=debug)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, 130, debug=False)
    except MemoryError:
        return _fail("error: not enough memory. Close other programs, or give fewer samples.", 1, debug=debug)
    except Exception as error:  # the last line of defence: a defect becomes a message and a status
        if interrupts:
            return _fail(INTERRUPTED, 130, debug=debug)
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            return _fail(f"error: {_refused(error)}", AccessError.exit_code, debug=debug)
        return _fail(_internal(error, arguments, debug=debug), 1, debug=debug)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    verb = arguments[0] if arguments else "--help"
    if verb in {"-h", "--help"}:
        return _print(_help())
    if verb in {"-V", "--version"}:
        return _print(f"graphopt {__version__}\n")
    if verb in LATER:
        do = "graphopt --help lists what is"
        raise UsageError(f"'{verb}' is not built into this version yet", where="graphopt", do=do)
    if verb not in VERBS:
        kind = "option" if verb.startswith("-") else "verb"
        raise UsageError(
            f"unknown {kind} '{verb}'", where="graphopt", do=nearest(verb, VERBS) or "Run graphopt --help for the verbs"
        )
    module = importlib.import_module(f"graphopt.cli.{verb.replace('-', '_')}")
    parser = Parser(verb, VERBS[verb])
    module.configure(parser)
    namespace = parser.parse(arguments[1:])
    if namespace is None:
        return 0
    if verb not in WITHOUT_NUMPY:
        importlib.import_module("numpy")  # onnxruntime imports it natively and prints what an interrupt raises there
    status: int = module.run(namespace)
    return status


@contextmanager
def _noted_interrupts(seen: list[int]) -> Iterator[None]:
    """Note Ctrl-C as it comes: a native import that is interrupted raises ImportError and forgets the reason."""
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def note(number: int, _: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _help() -> str:
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {name:<{width}}{summary}" for name, summary in VERBS.items())
    return f"""usage: graphopt VERB ... [--verify off|fast|full] [--json] [--seed N] [--force] [--quiet] [--debug]

graphopt {__version__}: a compiler for ONNX models. Smaller, faster, verified.

verbs:
{verbs}

graphopt VERB --help explains one verb. First steps:
  graphopt demo
  graphopt compile model.onnx -o out --recipe int8 --data feeds.npz

exit status: 0 done, 1 internal error, 2 usage or recipe, 3 model invalid or unsupported,
             4 budget or check not met, 5 optional dependency missing, 130 interrupted
"""


def _print(text: str) -> int:
    from graphopt.cli.terminal import write

    write(text)
    return 0


def _fail(message: str, status: int, *, debug: bool) -> int:
    from graphopt.report.text import printable

    if debug:
        traceback.print_exc()
    try:
        print(printable(message, keep="\n"), file=sys.stderr, flush=True)  # noqa: T201 - the log goes to stderr
    except OSError:  # the reader of stderr is gone; the exit status still tells
        sys.stderr = None
    return status


def _refused(error: OSError) -> AccessError:
    name = "" if error.filename is None else str(error.filename)
    where = name if len(name) <= 200 else f"{name[:200]}..."
    return AccessError(
        f"the system refuses it: {error.strerror}", where=where, do="Check the name, the permissions and the free space"
    )


def _internal(error: Exception, arguments: list[str], *, debug: bool) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    lines = [
        f"internal error: {type(error).__name__}: {error} ({os.path.basename(frame.filename)}:{frame.lineno})",  # noqa: PTH119
        "This is a defect of graphopt, not of your model. Please report it with the output of `graphopt doctor` and of",
        f"  graphopt {' '.join(arguments)}" + ("" if debug else " --debug"),
    ]
    return "\n".join(lines)
