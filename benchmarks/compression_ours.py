"""graphopt in the comparison: one recipe for each point, run through its public interface.

A recipe is a list of passes with options behind the default clean-up. None sees a label; no accuracy guard runs, since
the comparison shows what is lost at a fixed compression.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOW: frozenset[str] = frozenset()
Step = tuple[str, dict[str, Any]]
OPSET: Step = ("raise-opset", {"to": 21})
CLEAN: Step = ("eliminate-dead", {})


def _pruned(share: float, pattern: str = "unstructured") -> list[Step]:
    return [("prune-second-order", {"sparsity": share, "pattern": pattern})]


def _rounded(**options: Any) -> list[Step]:
    return [OPSET, ("fuse-bias", {}), ("round-weights", options)]


def _blocks(share: float, pattern: str) -> list[Step]:
    """Return how blocks are pruned: channels in an order that suits them first, small layers spared a little."""
    options = {"sparsity": share, "pattern": pattern}
    return [("permute-channels", options), ("prune-second-order", {**options, "allocation": "size"})]


RECIPES: dict[str, list[Step]] = {
    **{f"prune-{percent}": _pruned(percent / 100) for percent in (20, 30, 50, 70, 80, 90)},
    "2:4": [("permute-channels", {"pattern": "2:4"}), *_pruned(0.5, "2:4")],
    "4x1-70": _blocks(0.7, "4x1"),
    "channels-25": [("prune-channels", {"ratio": 0.25})],
    "channels-50": [("prune-channels", {"ratio": 0.5})],
    "w8a8": [("raise-opset", {}), ("fuse-bias", {}), ("round-weights", {"bits": 8}), ("insert-qdq", {})],
    "int8": [("raise-opset", {}), ("fuse-bias", {}), ("insert-qdq", {})],
    "w4": _rounded(bits=4),
    "w4a8": [*_rounded(bits=4), ("insert-qdq", {})],
    "w4a4": [*_rounded(bits=4), ("insert-qdq", {"activations": "int4"})],
    "w4-32": _rounded(bits=4, granularity="block", block=32),
    "w3": _rounded(bits=3),
    "ternary": _rounded(scheme="ternary"),
    "binary": _rounded(scheme="binary"),
    "prune-70+w4": [*_pruned(0.7), *_rounded(bits=4)],
}
"""Recipes by point, for every model."""
KEEPING = frozenset(("permute-channels", "prune-second-order", "prune-channels", "round-weights", "insert-qdq"))
"""Passes that are told which nodes to leave as they are."""


def ways(point: dict[str, Any], transformer: bool) -> Sequence[str]:
    """Return the one way there is, or none where no recipe exists."""
    return ("recipe",) if point["name"] in RECIPES else ()


def recipe(request: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a point as a document."""
    steps = []
    for name, options in [*RECIPES[request["point"]["name"]], CLEAN]:
        more = {"keep": request["keep"]} if request["keep"] and name in KEEPING else {}
        steps.append({name: {**options, **more}})
    return {"name": request["point"]["name"], "imports": ["default"], "passes": steps}


def prepare() -> None:
    """Import what a run needs, which is not part of its time."""
    import graphopt
    import graphopt.rewrite.recipe

    graphopt.rewrite.recipe.load_recipe({"name": "none", "passes": []})
    print("loaded", graphopt.Feeds, graphopt.PassManager)


def run(request: dict[str, Any], feeds: list[dict[str, Any]]) -> list[str]:
    """Compress a model by the recipe; return what the passes left alone."""
    import graphopt
    from graphopt.rewrite.recipe import load_recipe

    model = graphopt.load(request["model"])
    plan = load_recipe(recipe(request))
    outcome = graphopt.PassManager(plan.create(), seed=request["seed"]).run(model, graphopt.Feeds.open(feeds, model))
    model.save(request["output"])
    lossy = [record for record in outcome.records if record.contract.name == "LOSSY"]
    return [f"{record.name}: {node}: {reason}" for record in lossy for node, reason in record.skips][:20]
