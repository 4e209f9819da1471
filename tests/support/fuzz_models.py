"""A fuzzer: damaged models go through reading, the default passes and writing; nothing may crash or hang.

Each input must succeed or raise a GraphoptError within its time. Inputs run one after the other in a worker process,
so that a native crash or a hang ends the worker, is noted, and the run goes on behind it. Every input follows from seed
and number alone:

    python tests/support/fuzz_models.py --count 20000
    python tests/support/fuzz_models.py --only 1234           run one input here, with its traceback
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve()
if str(HERE.parents[2]) not in sys.path:
    sys.path.insert(0, str(HERE.parents[2]))

from model_mutations import mutate  # noqa: E402

SECONDS = 20.0
MEMORY_BYTES = 8 << 30


@dataclass
class Findings:
    """What a run found: endings by kind, and every input that ended wrongly."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def note(self, index: int, ending: str) -> None:
        kind = ending.split("|", 1)[0].strip()
        self.counts[kind.split()[0]] += 1
        if kind.split()[0] not in {"ok", "refused"}:
            self.failures.append((index, ending))


def run_one(data: bytes, recipe: str = "default") -> str:
    """Take one input through everything, with a recipe; return ``ok``, ``refused CODE`` or ``raised ...``."""
    from graphopt.errors import GraphoptError, PassError
    from graphopt.graph import read_model
    from graphopt.rewrite import PassManager, load_recipe

    try:
        model = read_model(data)
        PassManager(load_recipe(recipe).create()).run(model)
        read_model(model.to_bytes())
    except PassError as error:  # a defect of a pass by definition
        return f"raised {error} | {_where(error)}"
    except GraphoptError as error:
        return f"refused {error.code}"
    except Exception as error:  # exactly what the fuzzer looks for
        return f"raised {type(error).__name__}: {error} | {_where(error)}"
    return "ok"


def _where(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " < ".join(
        f"{Path(f.filename).name}:{f.lineno}" for f in reversed(traceback.extract_tb(cause.__traceback__)[-4:])
    )


def work(seed: int, start: int, stop: int, recipe: str) -> None:
    """The worker: announce each input before it runs and its ending afterwards, one line each on stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    for index in range(start, stop):
        channel.write(f"{index}\n")
        ending = run_one(mutate(seed, index), recipe)
        channel.write(f"{index} {' '.join(ending.split())[:600]}\n")


def fuzz(count: int, *, seed: int = 0, start: int = 0, recipe: str = "default", progress: bool = False) -> Findings:
    """Run ``count`` inputs and return what was found.

    Args:
        count: Number of inputs.
        seed: Chooses the inputs.
        start: Number of the first input.
        recipe: The passes to run.
        progress: Print a line for every 500 inputs and for every failure.
    """
    findings = Findings()
    index, stop = start, start + count
    while index < stop:
        worker = subprocess.Popen(
            [
                sys.executable,
                str(HERE),
                "--worker",
                "--seed",
                str(seed),
                "--start",
                str(index),
                "--count",
                str(stop - index),
                "--recipe",
                recipe,
            ],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            index = _follow(worker, index, stop, findings, progress=progress)
        finally:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
    return findings


def _follow(worker: subprocess.Popen[bytes], index: int, stop: int, findings: Findings, *, progress: bool) -> int:
    """Read what the worker tells until it ends or takes too long; return the number of the next input."""
    assert worker.stdout is not None
    running: int | None = None
    began = time.monotonic()
    pending = b""
    while True:
        patience = SECONDS * (3 if running is None else 1)  # it imports first
        ready, _, _ = select.select([worker.stdout], [], [], max(0.0, began + patience - time.monotonic()))
        if not ready:
            at = index if running is None else running
            _record(findings, at, f"hung for {patience:.0f} s", progress=progress)
            return at + 1
        chunk = os.read(worker.stdout.fileno(), 1 << 16)
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            number, _, ending = line.decode(errors="replace").partition(" ")
            running = None if ending else int(number)
            began = time.monotonic()
            if ending:
                index = int(number) + 1
                _record(findings, int(number), ending, progress=progress)
    status = worker.wait()
    if index >= stop:
        return index
    at = index if running is None else running
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    _record(findings, at, f"crashed with {name}", progress=progress)
    return at + 1


def _record(findings: Findings, index: int, ending: str, *, progress: bool) -> None:
    before = len(findings.failures)
    findings.note(index, ending)
    if progress and len(findings.failures) > before:
        print(f"{index}: {ending}", flush=True)
    elif progress and sum(findings.counts.values()) % 500 == 0:
        print(dict(findings.counts), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--recipe", default="default", help="the passes to run")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="run one input in this process")
    parser.add_argument("--save", type=Path, help="with --only: write the input here first")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.seed, arguments.start, arguments.start + arguments.count, arguments.recipe)
        return 0
    if arguments.only is not None:
        data = mutate(arguments.seed, arguments.only)
        if arguments.save:
            arguments.save.write_bytes(data)
        print(run_one(data, arguments.recipe))
        return 0
    findings = fuzz(arguments.count, seed=arguments.seed, start=arguments.start, recipe=arguments.recipe, progress=True)
    print(dict(findings.counts))
    return 1 if findings.failures else 0


if __name__ == "__main__":
    sys.exit(main())
