"""What one run did, as data: the object behind `report.json`, `report.html` and `--json`.

The classes are the schema. `Report.model_json_schema()` prints it, `Report.model_validate_json(text)` reads a file
back, and an unknown or missing key is an error. A change that an older reader cannot read raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

SCHEMA_VERSION = 1
EQUAL_DB = 200.0
"""Stands for "no difference at all" where decibels would be infinite, which JSON cannot write."""


def _finite_db(value: float) -> float:
    return -EQUAL_DB if math.isnan(value) else max(-EQUAL_DB, min(EQUAL_DB, value))


Decibels = Annotated[float, AfterValidator(_finite_db)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Entry(BaseModel):
    """Base of all parts: unchangeable once built, no unknown keys, every key documented in the schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class Tool(Entry):
    """The program that wrote the report."""

    name: str = "graphopt"
    version: str


class ModelInfo(Entry):
    """Size and contents of one model."""

    path: str | None
    """The file, as the user named it; null for a model that was never on disk."""
    sha256: str
    """Hash of the serialised model, 64 hexadecimal digits; empty when it was not computed."""
    nodes: Count
    """Nodes of every scope: branches, loop bodies and functions are counted."""
    bytes: Count
    """Bytes on disk, external data included."""
    parameters: Count
    """Elements of all constant weights of floating or integer type with more than one element."""
    operators: dict[str, int]
    """Nodes by operator; operators of other domains are written `domain::Operator`."""


class ModelPair(Entry):
    """The model that was read and the model that was written."""

    before: ModelInfo
    after: ModelInfo


class Quality(Entry):
    """How far the outputs of the result are from those of the original, measured on samples the passes never saw."""

    samples: Count
    """Samples judged."""
    held_back: bool = True
    """True when the samples were kept apart from calibration; false for random inputs, or too few samples to split."""
    agreement: Share | None = None
    """Share of rows of the first output with the same largest class (for embeddings: the rank correlation of
    their similarities), 0..1;
    null for other outputs."""
    sqnr_db: Decibels | None = None
    """Signal to quantization noise of the worst output, dB; 200 stands for bitwise equal outputs."""
    standard_error: Finite | None = None
    """Standard error of the agreement, as a share; null where there is none."""
    expected_loss: Finite | None = None
    """Points of accuracy that the original's own probabilities say were lost: a changed choice between two nearly equal
    classes costs little. Null unless the first output is class scores."""
    expected_loss_error: Finite | None = None
    """Standard error of the expected loss, in points."""
    kl: Finite | None = None
    """Divergence KL(original || result) of the first output's class probabilities, mean over rows, in nats. Null unless
    the first output is class scores."""
    kl_error: Finite | None = None
    """Standard error of the divergence, in nats."""
    sqnr_error_db: Finite | None = None
    """Standard error of the worst output's signal to noise ratio, dB; null for equal outputs or a single sample."""
    metric: str | None = None
    """The figure judged: `agreement`, `similarity` (order of embeddings), `sqnr_db`, or the user's own, by name."""
    before: Finite | None = None
    """The user's metric on the original model."""
    after: Finite | None = None
    """The user's metric on the result."""
    drop: Finite | None = None
    """Loss in the unit of the budget: metric units, percentage points of agreement, or dB below 40."""
    budget: Finite | None = None
    """Largest loss allowed; null when the user set none."""
    met: bool = True
    """False when the loss exceeds the budget."""


class Latency(Entry):
    """Median wall time of one run in milliseconds, both models in turn in one process."""

    before: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    after: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    threads: Annotated[int, Field(ge=0)]
    """Threads of each session; 0 leaves the choice to ONNX Runtime."""
    runs: Annotated[int, Field(ge=1)]
    """Timed runs of each model."""
    fallback: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    """The standard-operator fallback, where the result uses custom operators."""


class SkipEntry(Entry):
    """A place that a pass left as it was."""

    node: str
    reason: str


class PassEntry(Entry):
    """What one pass did."""

    name: str
    options: dict[str, JsonValue] = {}
    patches: Count = 0
    skips: tuple[SkipEntry, ...] = ()
    seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    nodes_before: Count = 0
    nodes_after: Count = 0
    contract: Literal["exact", "rounding", "lossy"] | None = None


class LayerEntry(Entry):
    """What a lossy or lowering pass did to one layer."""

    name: str
    op: str
    what: str
    """The change, for example `80 % zeros` or `int8 per channel`."""
    kept: bool
    """True when the change is in the model; false when it was refused, or reverted."""
    reverted: bool
    """True when the change was made and taken back, because it cost too much accuracy or time."""
    reason: str
    pass_name: str | None = None
    """The pass that made the record."""


class WeightEntry(Entry):
    """The weight of one layer before and after, for the bars of the report."""

    name: str
    """Name of the node in the original model."""
    op: str
    parameters: Count
    bytes_before: Count
    bytes_after: Count
    type_before: str
    type_after: str
    zeros_before: Share
    """Share of exact zeros among the weight's elements."""
    zeros_after: Share


class Environment(Entry):
    """Where the figures were measured."""

    onnxruntime: str
    onnx: str
    numpy: str
    python: str
    cpu: str
    isa: str
    """Instruction set the kernels chose: scalar, avx2, avx512, neon, ...; `none` without the kernel library."""
    cores: Count = 0
    """Cores this process may use; 0 when unknown."""
    system: str = ""


class Report(Entry):
    """Everything one run measured, did and did not do."""

    schema_version: Literal[1] = 1
    tool: Tool
    model: ModelPair
    quality: Quality | None = None
    """Null when nothing was compared."""
    latency_ms: Latency | None = None
    """Null when nothing was timed."""
    passes: tuple[PassEntry, ...] = ()
    layers: tuple[LayerEntry, ...] = ()
    weights: tuple[WeightEntry, ...] = ()
    environment: Environment
    target: str
    recipe: str
    """Name of the recipe; the complete recipe is `recipe.yaml` of the bundle."""
    notes: tuple[str, ...] = ()
    """Plan and fallback statements: what was decided, what was replaced by what and why."""
    seed: int = 0

    @property
    def met(self) -> bool:
        """Return True unless a budget was set and exceeded."""
        return self.quality is None or self.quality.met

    def to_json(self) -> str:
        """Return the report as indented JSON with a final newline."""
        return self.model_dump_json(indent=2) + "\n"
