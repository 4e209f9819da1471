"""The rewrite engine: patches, patterns, rules, the pass manager, the registry and recipes."""

from graphopt.rewrite.driver import Batch, Rule, RulePass, drive
from graphopt.rewrite.function_pattern import Finder, Maker, Rewrite, Rewrites, replace
from graphopt.rewrite.manager import Outcome, PassManager, PassRecord, PatchRecord
from graphopt.rewrite.pass_ import Pass, Steps, sections
from graphopt.rewrite.patch import Contract, LayerRecord, Patch, Skip, node_label
from graphopt.rewrite.recipe import Recipe, Step, load_recipe, preset_names, recipe_of, schema
from graphopt.rewrite.registry import create, pass_class, pass_names

__all__ = [
    "Batch",
    "Contract",
    "Finder",
    "LayerRecord",
    "Maker",
    "Outcome",
    "Pass",
    "PassManager",
    "PassRecord",
    "Patch",
    "PatchRecord",
    "Recipe",
    "Rewrite",
    "Rewrites",
    "Rule",
    "RulePass",
    "Skip",
    "Step",
    "Steps",
    "create",
    "drive",
    "load_recipe",
    "node_label",
    "pass_class",
    "pass_names",
    "preset_names",
    "recipe_of",
    "replace",
    "schema",
    "sections",
]
