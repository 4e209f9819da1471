"""ONNX Runtime sessions: made from a file, a bundle or bytes, quiet, and with errors a user can act on."""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from graphopt.errors import (
    DataError,
    ExternalDataError,
    GraphoptError,
    KernelError,
    ModelTooLargeError,
    ReadError,
    RunError,
    UnsupportedError,
    WriteError,
)
from graphopt.graph import read_model
from graphopt.runtime.inputs import ort_element, output_names

if TYPE_CHECKING:
    from graphopt.graph import Model

Feed = Mapping[str, Any]
"""One complete feed: an array per input name."""

MODEL_FILE = "model.onnx"
_ORT_ERRORS: Any = tuple(
    kind
    for kind in vars(ort_state).values()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception
)
_SOURCE_PLACE = re.compile(r"\S*/onnxruntime(?:_src)?/\S+\.(?:cc|h):\d+ \S.*?\)(?: const)? (?=\w)")
"""Where in its own sources the runtime says it failed: a file, a line and the signature of a function."""
_NOT_WRITTEN = re.compile(r"Protobuf serialization failed|Failed to write external initializers|^SystemError : \d+$")
"""What the runtime says when it cannot write the model it optimized; it has no error of its own for that."""
_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_FATAL_ONLY = 4
_LOST_OUTPUT = "Failed to find node output"
"""What ONNX Runtime 1.31 says when its own optimization removed a node whose result is an output of the model, like a
Transpose that it took into a Gemm behind it: as it stands the model loads."""

FLOAT8 = "tensor(float8"


def session(
    source: str | Path | bytes | Model,
    *,
    threads: int = 1,
    optimize: bool | Literal["off", "basic", "extended", "all"] = True,
    kernels: bool | str | Path | Literal["auto"] = "auto",
    optimized_path: str | Path | None = None,
    dimensions: Mapping[str, int] | None = None,
    reuse_memory: bool = True,
    plan_memory: bool = True,
    config: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """Make an ONNX Runtime session on the CPU.

    Args:
        source: A model file, a bundle folder (its ``model.onnx`` is loaded), serialized bytes, or a ``Model``.
        threads: Threads inside one operator; 0 leaves the choice to ONNX Runtime.
        optimize: The runtime's own graph optimizations: True is all of them, False none, or a level by name.
        kernels: The custom-op library. ``"auto"`` registers a library only when ``source`` is a bundle folder that has
            one for this platform: native code is never loaded because it happens to lie beside a model file. True
            registers the library of this installation, a path that library, False none.
        optimized_path: Where the runtime writes the model it optimized.
        dimensions: Sizes for symbolic dimensions, by their name.
        reuse_memory: Let the runtime plan which activations share memory. The plan takes time with the square
            of the nodes (16 s for 10 000 of them against 0.4 s without, measured with ONNX Runtime 1.31).
        plan_memory: Let the runtime remember the first run's allocations and make them as one block from then on: for
            a model all of whose tensors are outputs that doubles its memory and gains nothing.
        config: Further session configuration entries of ONNX Runtime.

    Returns:
        The session, logging nothing below fatal errors.

    Raises:
        ReadError: The file is missing or is no ONNX model.
        ExternalDataError: Its external data is missing, or lies outside its folder.
        UnsupportedError: ONNX Runtime refuses the model; its own words are in the message.
        KernelError: The custom-op library is missing or does not load.
        WriteError: The optimized model cannot be written.
    """
    where = _where(source)
    model, library = _locate(source, kernels)
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _LEVELS[
        {True: "all", False: "off"}.get(optimize, "") if isinstance(optimize, bool) else optimize
    ]
    options.enable_mem_reuse = reuse_memory
    options.enable_mem_pattern = plan_memory
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    for name, size in (dimensions or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    if library is not None:
        _register(options, library)
    if _rounds_to_float8(model):
        _spare_float8(options)
    try:
        return _load(model, options, where)
    except UnsupportedError as error:
        if _LOST_OUTPUT in str(error) and options.graph_optimization_level != _LEVELS["off"]:
            options.graph_optimization_level = _LEVELS["off"]
        elif FLOAT8 in str(error):
            _spare_float8(options)
        else:
            raise
        return _load(model, options, where)


def _rounds_to_float8(model: Path | bytes | Model) -> bool:
    """Tell whether a model has conversions to 8-bit floats."""
    if isinstance(model, Path | bytes):
        if not _mentions_rounding(model):  # nearly every model, which then need not be read here
            return False
        try:
            model = read_model(model)
        except GraphoptError:
            return False  # the runtime says better what is wrong with it
    roundings = (node for _, node in model.walk() if node.op == "QuantizeLinear" and len(node.inputs) > 2)
    return any("float8" in str(node.inputs[2].dtype) for node in roundings)


def _mentions_rounding(model: Path | bytes) -> bool:
    name = b"QuantizeLinear"
    if isinstance(model, bytes):
        return name in model
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(name) >= 0
    except (OSError, ValueError):
        return False  # missing or empty: the runtime says so


def _spare_float8(options: ort.SessionOptions) -> None:
    """Leave conversions to 8-bit floats as they are.

    ONNX Runtime fuses them into integer operators that version 1.31 then refuses and 1.32 computes wrongly, or, from
    the level "extended" on, drops the activations before them, after which results are wrong.
    """
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.graph_optimization_level = min(
        options.graph_optimization_level, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, key=int
    )


def run(session: ort.InferenceSession, feed: Feed, outputs: list[str] | None = None) -> dict[str, Any]:
    """Run a session on one feed.

    Args:
        session: The session.
        feed: An array per input; entries that are no inputs are ignored.
        outputs: The outputs wanted; None is all of them.

    Returns:
        The outputs by name, in the session's order. A tensor is an array of its ONNX element type (bfloat16 as
        ml_dtypes has it), a sequence a list.

    Raises:
        DataError: The feed does not fit the model.
        RunError: The runtime failed inside the model.
    """
    names = output_names(session) if outputs is None else outputs
    given: Mapping[str, Any] = feed
    try:
        call, given = _prepared(session, feed, names)
        found = call()
    except (*_ORT_ERRORS, ValueError, TypeError, RuntimeError) as error:
        raise _run_error(error, session, given) from error
    return {name: _as_numpy(value) for name, value in zip(names, found, strict=True)}


def bare_run(session: ort.InferenceSession, feed: Feed) -> Callable[[], Any]:
    """Return a call that runs a session on a feed with nothing around it, for timing."""
    return _prepared(session, feed, output_names(session))[0]


def _prepared(session: ort.InferenceSession, feed: Feed, names: list[str]) -> tuple[Callable[[], Any], dict[str, Any]]:
    known = {str(each.name): str(each.type) for each in session.get_inputs()}
    known |= {str(each.name): str(each.type) for each in session.get_overridable_initializers()}
    given = {name: _as_ort(value, known[name]) for name, value in feed.items() if name in known}
    if any(isinstance(each, ort.OrtValue) for each in given.values()) or _needs_ort_values(session, names):
        values = {
            k: v if isinstance(v, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(v) for k, v in given.items()
        }
        return functools.partial(session.run_with_ort_values, names, values), given
    return functools.partial(session.run, names, given), given


def platform_tag() -> str:
    """Return the folder name of this platform's libraries in a bundle, for example ``linux-x86_64``."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return f"{platform.system().lower()}-{machine}"


def _where(source: object) -> str:
    if isinstance(source, bytes | bytearray | memoryview):
        return "the serialized model"
    if isinstance(source, str | Path):
        return str(source)
    return str(getattr(source, "path", None) or "the model")


def _locate(source: str | Path | bytes | Model, kernels: bool | str | Path) -> tuple[Path | bytes | Model, Path | None]:
    from graphopt.graph.read import refuse_unsafe_data
    from graphopt.runtime.library import kernel_library, library_name

    library: Path | None = None
    model: Path | bytes | Model
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            raise ReadError("there is no such file or folder", where=str(path), do="Check the path.")
        if path.is_dir():
            bundled = path / "lib" / platform_tag() / library_name()
            library = bundled if kernels == "auto" and bundled.is_file() else None
            path = path / MODEL_FILE
            if not path.is_file():
                raise ReadError(
                    f"the folder has no {MODEL_FILE}",
                    where=str(source),
                    must="A folder must be a bundle that graphopt wrote.",
                )
        refuse_unsafe_data(path)
        model = path
    else:
        model = source
    if kernels is True:
        library = kernel_library()
    elif kernels is not False and kernels != "auto":
        library = Path(kernels)
    return model, library


def _register(options: ort.SessionOptions, library: Path) -> None:
    if not library.is_file():
        raise KernelError("there is no such custom-op library", where=str(library), do="Check the path.")
    try:
        options.register_custom_ops_library(str(library.resolve()))
    except (*_ORT_ERRORS, RuntimeError) as error:
        raise KernelError(
            f"the custom-op library does not load: {_text(error)}",
            where=str(library),
            do="Use a library built for this platform; the sources in the bundle's src folder build one.",
        ) from error


def _load(model: Path | bytes | Model, options: ort.SessionOptions, where: str) -> ort.InferenceSession:
    if isinstance(model, Path | bytes | bytearray | memoryview):
        return _make(str(model) if isinstance(model, Path) else bytes(model), options, where)
    try:
        data = model.to_bytes()
    except ModelTooLargeError:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            path = Path(folder) / MODEL_FILE
            model.save(path)
            return _make(str(path), options, where)
    return _make(data, options, where)


def _make(model: str | bytes, options: ort.SessionOptions, where: str) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (*_ORT_ERRORS, RuntimeError, ValueError, TypeError) as error:
        if options.optimized_model_filepath and _NOT_WRITTEN.search(str(error)):
            raise _write_error(options.optimized_model_filepath) from error
        raise _load_error(error, where) from error


def _write_error(path: str) -> GraphoptError:
    return WriteError(
        "ONNX Runtime cannot write the model it optimized",
        where=path,
        do="Free space there, or set TMPDIR to a folder that has some where graphopt chose the place.",
    )


def _load_error(error: Exception, where: str) -> GraphoptError:
    text = _text(error)
    if isinstance(error, ort_state.NoSuchFile | ort_state.InvalidProtobuf | ort_state.NoModel):
        return ReadError(
            f"ONNX Runtime cannot read the model: {text}", where=where, do="Fetch or export the file again."
        )
    if "external" in text.lower() and ("data" in text.lower() or "initializer" in text.lower()):
        return ExternalDataError(
            f"ONNX Runtime cannot load the weights: {text}", where=where, do="Keep the data file beside the model."
        )
    return UnsupportedError(
        f"ONNX Runtime {ort.__version__} does not load the model: {text}",
        where=where,
        do="If it names an operator of another domain, pass its library; if an opset, use a newer onnxruntime.",
    )


def _run_error(error: Exception, session: ort.InferenceSession, feed: Mapping[str, Any]) -> GraphoptError:
    text = _text(error)
    missing = [each.name for each in session.get_inputs() if each.name not in feed]
    if missing:
        return DataError(
            f"the feed lacks the inputs {', '.join(missing)}", must="A feed must hold an array for every input."
        )
    if isinstance(error, ort_state.InvalidArgument) and "input" in text.lower() and "Non-zero status code" not in text:
        return DataError(f"the feed does not fit the model: {text}")
    return RunError(
        f"ONNX Runtime failed while running the model: {text}", do="Check that the feed is one the model can work on."
    )


def _text(error: Exception) -> str:
    """Return the runtime's own words without its error prefix and on one line."""
    text = _SOURCE_PLACE.sub("", " ".join(str(error).split()))
    marker = text.find(" : ", text.find("[ONNXRuntimeError]") + 1) if "[ONNXRuntimeError]" in text else -1
    if marker < 0:
        return text
    parts = text.split(" : ", 3)
    return parts[-1] if len(parts) == 4 else text


_SMALL_TYPES = ("tensor(bfloat16)", "tensor(float8", "tensor(int4)", "tensor(uint4)")


_STORED: dict[Any, tuple[Any, int]] = {
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, 17),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, 18),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, 19),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, 20),
}
"""How types that numpy lacks are handed over: as which type of the same size, and their ONNX number."""


def _as_ort(value: Any, kind: str) -> Any:
    """Return what the runtime takes for a value: types that numpy lacks travel as OrtValue."""
    if isinstance(value, ort.OrtValue) or not kind.startswith("tensor("):
        return value
    array = np.asarray(value)
    if array.dtype in _STORED:
        stored, number = _STORED[array.dtype]
        rows = np.asarray(array, order="C")  # np.ascontiguousarray would give a scalar an axis
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(rows.view(stored), number)
    return array


def _needs_ort_values(session: ort.InferenceSession, names: list[str]) -> bool:
    return any(each.name in names and each.type.startswith(_SMALL_TYPES) for each in session.get_outputs())


def _as_numpy(value: Any) -> Any:
    if not isinstance(value, ort.OrtValue):
        return value
    kind = str(value.data_type())
    if not kind.startswith(_SMALL_TYPES):
        return value.numpy()
    dtype = ort_element(kind)
    if dtype is None:
        raise UnsupportedError(f"an output of type {kind} cannot be read")
    stored = np.frombuffer(ctypes.string_at(value._ortvalue.data_ptr(), value.tensor_size_in_bytes()), np.uint8)
    shape = value.shape()
    if dtype.name in ("int4", "uint4"):  # two to a byte, the first in the low half
        count = int(np.prod(shape))
        halves = np.stack([stored & 15, stored >> 4], axis=-1).ravel()[:count].astype(np.int8)
        signed = np.where(halves > 7, halves - 16, halves) if dtype.name == "int4" else halves
        return signed.astype(dtype).reshape(shape)
    return stored.view(dtype).reshape(shape)
