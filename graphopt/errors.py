"""Every error that graphopt raises on purpose, each with a code and an exit status.

An error says what is, where, what must be and what to do:

    GO-R003 model.onnx: tensor 'w' keeps its data in '../w.bin', outside the model's folder. External data must stay
    inside the folder of the model. Move the file beside the model and correct its location.

Libraries never print, exit or warn: they raise one of these. The command line turns an error into its message on stderr
and its exit status. The letter of a code names the layer: R reading, W writing, G graph, A analysis, D data, C recipes
and options, P passes, V verification, Q quality, K kernels, X optional dependencies, U usage.
"""

from __future__ import annotations

from typing import ClassVar


class GraphoptError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: What is wrong, with the offending value.
        where: The file, node, tensor, option or pass it was found in.
        must: What has to hold instead, as a sentence.
        do: What the user can do next, as a sentence.
    """

    code: ClassVar[str] = "GO-0000"
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", must: str = "", do: str = "") -> None:
        self.what = what
        self.where = where
        self.must = must
        self.do = do
        super().__init__(self.message())

    def message(self) -> str:
        """Return the whole message on one line."""
        head = f"{self.code} {self.where}: {self.what}" if self.where else f"{self.code} {self.what}"
        return " ".join(
            part if part.endswith((".", "?", "!")) else f"{part}." for part in (head, self.must, self.do) if part
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.must, self.do))


def _rebuild(kind: type[GraphoptError], what: str, where: str, must: str, do: str) -> GraphoptError:
    return kind(what, where=where, must=must, do=do)


# ------------------------------------------------------------------------------------------------- U: usage, exit 2


class UsageError(GraphoptError):
    """A flag or an argument cannot be used as given.

    Fails: ``graphopt prune m.onnx -o out.onnx --sparsity 80``. Fixed: ``--sparsity 0.8``.
    """

    code = "GO-U001"
    exit_code = 2


class OutputExistsError(UsageError):
    """The output is there already and ``--force`` was not given.

    Fails: ``graphopt simplify m.onnx -o m.onnx``. Fixed: another name, or ``--force``.
    """

    code = "GO-U002"


class AccessError(UsageError):
    """The system does not let graphopt at a file or folder that was named: no permission, a name that is too long.

    Fails: ``-o`` inside a folder of another user. Fixed: a folder that you may enter.
    """

    code = "GO-U003"


# --------------------------------------------------------------------------------------- C: recipes and options, exit 2


class RecipeError(GraphoptError):
    """A recipe or a pass option is not valid.

    Fails: ``passes: [fold-constant]``. Fixed: ``passes: [fold-constants]`` (the message names the nearest valid key).
    """

    code = "GO-C001"
    exit_code = 2


class UnknownPassError(RecipeError):
    """No pass of this name is registered.

    Fails: ``--skip fuse-bn``. Fixed: ``--skip fuse-batch-norm``; ``graphopt passes`` lists them.
    """

    code = "GO-C002"


# ----------------------------------------------------------------------------------------------------- D: data, exit 2


class DataError(GraphoptError):
    """The feeds do not fit the model or cannot be read.

    Fails: an .npz whose array is named ``x`` for a model with the input ``input``. Fixed: name it ``input``.
    """

    code = "GO-D001"
    exit_code = 2


class CalibrationCacheError(DataError):
    """A calibration cache is damaged, edited wrongly, or of another model.

    Fails: ``"low": 6.0, "high": 0.0``, or the cache of another network. Fixed: a range from the smaller end to the
    larger; a cache made from this file by ``graphopt calibrate``.
    """

    code = "GO-D002"


# -------------------------------------------------------------------------------------------------- R: reading, exit 3


class ReadError(GraphoptError):
    """The file cannot be read as an ONNX model.

    Fails: a truncated download. Fixed: fetch the file again and compare its size or hash.
    """

    code = "GO-R001"
    exit_code = 3


class ExternalDataError(ReadError):
    """External data is missing, too short, or its description is not valid.

    Fails: ``model.onnx`` copied without ``model.onnx.data``. Fixed: copy both.
    """

    code = "GO-R002"


class ExternalDataEscapeError(ReadError):
    """External data lies outside the model's folder: refused, since models are untrusted input.

    Fails: location ``../../etc/passwd``, an absolute path, or a symbolic link out of the folder. Fixed: a file beside
    the model.
    """

    code = "GO-R003"


# -------------------------------------------------------------------------------------------------- W: writing, exit 2


class WriteError(GraphoptError):
    """The output cannot be written; nothing was left half-written.

    Fails: a full disk or a folder without write permission. Fixed: another folder.
    """

    code = "GO-W001"
    exit_code = 2


class ModelTooLargeError(WriteError):
    """The model does not fit one protobuf message of 2 GiB.

    Fails: saving 3 GB of weights inline. Fixed: save with external data.
    """

    code = "GO-W002"


# ---------------------------------------------------------------------------------------------------- G: graph, exit 3


class GraphError(GraphoptError):
    """The graph breaks a rule of the ONNX specification or of the graph layer.

    Fails: two nodes that produce the same tensor, or a cycle. Fixed: rename or remove one.
    """

    code = "GO-G001"
    exit_code = 3


class UnsupportedError(GraphoptError):
    """The model uses a feature that this operation does not support.

    Fails: running a model that declares a custom domain without its library. Fixed: name the library.
    """

    code = "GO-G002"
    exit_code = 3


# ------------------------------------------------------------------------------------------------ A: analysis, exit 1


class AnalysisError(GraphoptError):
    """An analysis is wrongly built: a defect of the analysis, never of the model.

    Fails: an analysis whose ``compute`` asks for itself through another one. Fixed: a third analysis that both ask for.
    """

    code = "GO-A001"


class RunError(GraphoptError):
    """The runtime failed while it ran the model: the feed, or the model itself, is one it cannot work on.

    Fails: a Reshape to a constant shape, fed with another batch size. Fixed: the batch size the model was exported for.
    """

    code = "GO-G003"
    exit_code = 3


# ------------------------------------------------------------------------------------------------- P: passes, exit 1


class PassError(GraphoptError):
    """A pass raised, or broke what it declares: a defect of the pass, never of the model.

    Fails: a pass whose patch edits the graph while it matches. Fixed: edit only inside ``Patch.apply``.
    """

    code = "GO-P001"


# -------------------------------------------------------------------------------------------- V: verification, exit 1


class VerificationError(GraphoptError):
    """A rewrite broke the legality of the graph or its declared numeric contract.

    The message names the pass, the patch and the command that bisects to it.

    Fails: a pass that declares EXACT and folds ``x * 0`` into 0, which is wrong for NaN. Fixed: a pass that skips it.
    """

    code = "GO-V001"


class CheckFailedError(GraphoptError):
    """Two models differ by more than the contract allows.

    Fails: ``graphopt check a.onnx b.onnx --contract exact`` on a quantized model. Fixed: ``--contract lossy``.
    """

    code = "GO-V002"
    exit_code = 4


# -------------------------------------------------------------------------------------------------- Q: quality, exit 4


class BudgetError(GraphoptError):
    """The accuracy budget was not met; the output is written only with ``--keep``.

    Fails: ``--max-drop 0.1`` on a model that int8 changes by 0.5 points. Fixed: a larger budget or another recipe.
    """

    code = "GO-Q001"
    exit_code = 4


# -------------------------------------------------------------------------------------------------- K: kernels, exit 1


class KernelError(GraphoptError):
    """The kernel library is missing, does not load, or refuses a forced instruction set.

    Fails: ``GRAPHOPT_ISA=avx1024``. Fixed: one of the names in the message.
    """

    code = "GO-K001"


# ------------------------------------------------------------------------------------ X: optional dependencies, exit 5


class MissingDependencyError(GraphoptError):
    """An optional dependency is not installed; the message has the pip line.

    Fails: a feature of an extra in an installation without it. Fixed: the ``pip install`` line of the message.
    """

    code = "GO-X001"
    exit_code = 5
