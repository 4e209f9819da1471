from __future__ import annotations

from command_runs import graphopt_here

__all__ = ["graphopt_here"]
