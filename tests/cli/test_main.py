from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import graphopt
from graphopt import cli
from graphopt.cli import VERBS, main
from graphopt.errors import GraphoptError, KernelError, MissingDependencyError, ReadError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


def raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make the verb doctor raise."""
    from graphopt.cli import doctor

    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(doctor, "run", fail)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_verb_on_stdout(graphopt_here: Run, arguments: tuple[str, ...]) -> None:
    ran = graphopt_here(*arguments)
    assert ran.status == 0
    assert all(f"  {verb} " in ran.out for verb in VERBS)
    assert ran.err == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_page_and_the_common_options(graphopt_here: Run, verb: str) -> None:
    for arguments in ((verb, "--help"), ("help", verb)):
        ran = graphopt_here(*arguments)
        assert ran.status == 0
        assert ran.out.startswith(f"usage: graphopt {verb}")
        for option in ("--verify", "--json", "--seed", "--force", "--quiet", "--debug"):
            assert option in ran.out


def test_version_is_that_of_the_package(graphopt_here: Run) -> None:
    assert graphopt_here("--version").out == f"graphopt {graphopt.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("complie",), "unknown verb 'complie'. Did you mean compile?"),
        (("convert",), "'convert' is not built into this version yet"),
        (("xyzzy",), "Run graphopt --help for the verbs."),
        (("--verison",), "unknown option '--verison'"),
        (("compile", "m.onnx", "-o", "d", "--dta", "f.npz"), "unknown option '--dta'. Did you mean --data?"),
        (("compile", "m.onnx", "-o", "d", "--max-dorp=1"), "unknown option '--max-dorp'. Did you mean --max-drop?"),
        (("compile", "m.onnx"), "missing: -o/--output"),
        (("compile", "m.onnx", "n.onnx", "-o", "d"), "unexpected argument 'n.onnx'"),
        (("compile", "m.onnx", "-o"), "-o/--output: expected one argument"),
        (
            ("compile", "m.onnx", "-o", "d", "--verify", "ful"),
            "'ful' is not one of off, fast, full. Did you mean full?",
        ),
        (("compile", "m.onnx", "-o", "d", "--seed", "x"), "'x' is not a whole number of at least 0"),
        (("compile", "m.onnx", "-o", "d", "--max-drop", "-1"), "'-1' is not a number of at least 0"),
        (("compile", "m.onnx", "-o", "d", "--max-drop", "nan"), "'nan' is not a number of at least 0"),
        (("compile", "m.onnx", "-o", "d", "--set", "sparsity=1"), "does not have the form PASS.OPTION=VALUE"),
        (("compile", "m.onnx", "-o", "d", "--set", "a.b=[1"), "the value of 'a.b' is not valid YAML"),
        (("prune", "m.onnx", "-o", "d", "--sparsity", "80"), "'80' is not a share from 0 to 1. Did you mean 0.8?"),
        (("check", "a.onnx", "b.onnx", "--contract", "exakt"), "Did you mean exact?"),
        (("bench", "a.onnx", "--runs", "0"), "'0' is not a whole number of at least 1"),
        (("recipe", "shw", "int8"), "Did you mean show?"),
        (("recipe", "show"), "'show' needs the name of a preset or a file"),
        (("recipe", "list", "int8"), "'list' takes no name, not 'int8'"),
    ],
)
def test_wrong_arguments_are_status_2_and_say_what_is_right(
    graphopt_here: Run, arguments: tuple[str, ...], said: str
) -> None:
    ran = graphopt_here(*arguments)
    assert ran.status == 2
    assert said in ran.err
    assert ran.err.startswith("error: GO-U001 graphopt")
    assert ran.out == ""


def test_abbreviated_options_are_not_guessed(graphopt_here: Run) -> None:
    assert graphopt_here("compile", "m.onnx", "--out", "d").status == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("wrong", where="--x"), 2),
        (ReadError("broken", where="m.onnx"), 3),
        (KernelError("missing"), 1),
        (MissingDependencyError("torch is missing", do="pip install torch"), 5),
    ],
)
def test_deliberate_error_is_its_message_and_its_status(
    graphopt_here: Run, monkeypatch: pytest.MonkeyPatch, error: GraphoptError, status: int
) -> None:
    raises(monkeypatch, error)
    ran = graphopt_here("doctor")
    assert ran.status == status == error.exit_code
    assert ran.err == f"error: {error}\n"
    assert ran.out == ""


def test_unexpected_error_is_status_1_and_says_how_to_report_it(
    graphopt_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    raises(monkeypatch, ZeroDivisionError("by zero"))
    ran = graphopt_here("doctor")
    assert ran.status == 1
    assert ran.err.startswith("internal error: ZeroDivisionError: by zero (test_main.py:")
    assert "graphopt doctor --debug" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_traceback_is_shown_on_demand_only(graphopt_here: Run, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    raises(monkeypatch, UsageError("wrong"))
    assert "Traceback" not in graphopt_here("doctor").err
    if how == "variable":
        monkeypatch.setenv("GRAPHOPT_TRACEBACK", "1")
    ran = graphopt_here("doctor", *(["--debug"] if how == "flag" else []))
    assert "Traceback" in ran.err
    assert ran.status == 2


def test_interruption_is_status_130_and_one_line(graphopt_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raises(monkeypatch, KeyboardInterrupt())
    ran = graphopt_here("doctor")
    assert ran.status == 130
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("interrupted")


def test_warnings_of_libraries_are_for_debugging(graphopt_process: Run, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "import warnings\nwarnings.warn('odd', RuntimeWarning)\ndef feeds():\n    raise OSError('gone')\n"
    )
    arguments = ("check", tmp_path / "a.onnx", tmp_path / "a.onnx", "--data", f"{tmp_path / 'noisy.py'}:feeds")
    import onnx

    onnx.save(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
        ),
        tmp_path / "a.onnx",
    )
    assert "RuntimeWarning" not in graphopt_process(*arguments).err
    assert "RuntimeWarning" in graphopt_process(*arguments, "--debug").err


def test_memory_that_runs_out_is_a_message(graphopt_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raises(monkeypatch, MemoryError())
    ran = graphopt_here("doctor")
    assert ran.status == 1
    assert ran.err.startswith("error: not enough memory")


def test_message_with_escape_sequences_does_not_reach_the_terminal(
    graphopt_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    raises(monkeypatch, ReadError("tensor '\x1b]0;owned\x07' is odd"))
    ran = graphopt_here("doctor")
    assert "\x1b" not in ran.err
    assert "\\x1b]0;owned\\x07" in ran.err


def test_help_imports_nothing_heavy(command: list[str], environment: dict[str, str]) -> None:
    heavy = "{'numpy', 'onnx', 'onnxruntime', 'pydantic', 'rich', 'yaml', 'networkx'}"
    for arguments in (["--help"], ["compile", "--help"], ["complie"]):
        program = f"import sys; from graphopt.cli import main; main({arguments}); print({heavy} & set(sys.modules))"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
        )
        assert done.stdout.endswith("set()\n")


def test_reader_that_goes_away_is_no_error(command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*command, "passes"], stdout=written, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    os.close(written)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")  # noqa: PTH110
def test_full_stdout_is_an_error(command: list[str], environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*command, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert done.returncode == 2
    assert "stdout cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_main_takes_the_arguments_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["graphopt", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("graphopt ")


def test_every_verb_is_a_module_with_the_two_functions() -> None:
    import importlib

    for verb in VERBS:
        module = importlib.import_module(f"{cli.__name__}.{verb.replace('-', '_')}")
        assert callable(module.configure)
        assert callable(module.run)


def test_interrupt_that_a_native_import_turned_into_another_error_is_still_one(
    graphopt_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.cli import doctor

    def import_natively(_: object) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            message = "initialization failed"
        raise ImportError(message)

    monkeypatch.setattr(doctor, "run", import_natively)
    ran = graphopt_here("doctor")
    assert ran.status == 130
    assert ran.err == "interrupted: nothing was left half-written\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_at_any_time_of_the_start_is_status_130(
    command: list[str], environment: dict[str, str], model: Path, tmp_path: Path
) -> None:
    """From the first line of `main` on: the imports of numpy and onnxruntime take most of the time before the work."""
    for delay in (0.0, 0.1, 0.2, 0.3):
        code = command[2].replace("main;", f"main; import threading, signal; {timer(delay)};")
        done = subprocess.run(
            [*command[:2], code, "compile", str(model), "-o", str(tmp_path / "out")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (130, "interrupted: nothing was left half-written\n"), delay
    assert not (tmp_path / "out").exists()


def timer(delay: float) -> str:
    return (
        f"threading.Timer({delay} + 0.01, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "LONG"),
        ("check", "LONG", "LONG"),
        ("bench", "LONG"),
        ("simplify", "MODEL", "-o", "LONG"),
        ("compile", "MODEL", "-o", "LONG"),
        ("compile", "MODEL", "-o", "out", "--data", "LONG"),
        ("compile", "MODEL", "-o", "out", "--recipe", "LONG"),
        ("demo", "-o", "LONG"),
    ],
    ids=" ".join,
)
def test_path_that_the_system_refuses_is_no_internal_error(
    graphopt_here: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"LONG": "a" * 5000, "MODEL": str(model)}
    before = sorted(tmp_path.iterdir())
    ran = graphopt_here(*(names.get(each, each) for each in arguments))
    assert ran.status == 2
    assert ran.err.startswith("error: GO-U003 aaa")
    assert len(ran.err) < 500
    assert sorted(tmp_path.iterdir()) == before
