"""Writing the result: the bundle folder with the model, its kernels, and what is needed to load it anywhere."""

from graphopt.emit.bundle import Bundle, write_bundle
from graphopt.emit.staging import refuse_unsafe_target, staged_directory

__all__ = ["Bundle", "refuse_unsafe_target", "staged_directory", "write_bundle"]
