"""Targets: the rules by which each runtime executes integer models, found by name, and the audit of what it fused."""

from graphopt.target.audit import Audit, FloatNode, audit
from graphopt.target.ort_cpu import ORT_CPU
from graphopt.target.registry import TARGETS, find_number, find_target
from graphopt.target.rules import OpRule, Role, Target
from graphopt.target.validator import BrokenRule, validate

__all__ = [
    "ORT_CPU",
    "TARGETS",
    "Audit",
    "BrokenRule",
    "FloatNode",
    "OpRule",
    "Role",
    "Target",
    "audit",
    "find_number",
    "find_target",
    "validate",
]
