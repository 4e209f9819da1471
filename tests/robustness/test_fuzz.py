"""The fuzzer, in a short run for every change and a long one for releases; it must notice what it looks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import fuzz_models
from model_mutations import mutate, seeds

if TYPE_CHECKING:
    from pathlib import Path


def test_three_hundred_damaged_models_neither_crash_nor_hang() -> None:
    findings = fuzz_models.fuzz(300, seed=1)
    assert not findings.failures
    assert sum(findings.counts.values()) == 300
    assert findings.counts["ok"] > 20  # the mutations reach behind the reader
    assert findings.counts["refused"] > 20


@pytest.mark.slow
def test_twenty_thousand_damaged_models_neither_crash_nor_hang() -> None:
    findings = fuzz_models.fuzz(20_000, seed=0)
    assert not findings.failures
    assert sum(findings.counts.values()) == 20_000


@pytest.mark.parametrize("name", seeds())
def test_undamaged_models_pass(name: str) -> None:
    assert fuzz_models.run_one(seeds()[name]) == "ok"


def test_inputs_follow_from_seed_and_number() -> None:
    assert [mutate(3, index) for index in range(20)] == [mutate(3, index) for index in range(20)]
    assert mutate(3, 0) != mutate(4, 0)


def test_exception_counts_as_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> object:
        raise IndexError("out of range")

    monkeypatch.setattr("graphopt.graph.read_model", broken)
    assert fuzz_models.run_one(seeds()["linear"]).startswith("raised IndexError: out of range | test_fuzz.py:")


WORKERS = {
    "crash": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
    "exit": ("raise SystemExit(3)", "crashed with status 3"),
    "hang": ("import time; time.sleep(60)", "hung"),
}


@pytest.mark.parametrize("kind", WORKERS)
def test_dead_or_silent_worker_is_noted_and_the_run_goes_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    action, ending = WORKERS[kind]
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys\n"
        "start, count = (int(sys.argv[sys.argv.index(name) + 1]) for name in ('--start', '--count'))\n"
        "for index in range(start, start + count):\n"
        "    print(index, flush=True)\n"
        f"    if index == 2:\n        {action}\n"
        "    print(index, 'ok', flush=True)\n"
    )
    monkeypatch.setattr(fuzz_models, "HERE", worker)
    monkeypatch.setattr(fuzz_models, "SECONDS", 1.0)
    findings = fuzz_models.fuzz(5)
    assert [index for index, _ in findings.failures] == [2]
    assert findings.failures[0][1].startswith(ending)
    assert findings.counts["ok"] == 4
