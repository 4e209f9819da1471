"""Measuring which kernels are faster than ONNX Runtime's dense operators on this machine."""

from graphopt.tuning.grid import FULL, QUICK, Plan, tune

__all__ = ["FULL", "QUICK", "Plan", "tune"]
