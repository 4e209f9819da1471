"""Which layer runs in which precision: costs measured on this machine, a plan under a budget.

`measure_costs` fills a table, `make_plan` divides the model by it: the same table gives the same plan;
`compile_within` carries it out.
"""

from __future__ import annotations

from graphopt.mixed_precision.compiling import Request, compile_within
from graphopt.mixed_precision.costs import measure_costs, prepare
from graphopt.mixed_precision.planning import Budgets, make_plan, recipe_of_plan

__all__ = ["Budgets", "Request", "compile_within", "make_plan", "measure_costs", "prepare", "recipe_of_plan"]
