"""Recipes and options that are wrong: the message names the key and the nearest valid one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bad_input import Ended, assert_only, assert_refused
from graphopt import demo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECIPES = {
    "unknown key": ("passes: []\nbugdet: {max_drop: 1}\n", ("bugdet", "'budget'")),
    "unknown pass": ("passes: [fold-constant]\n", ("fold-constant", "'fold-constants'")),
    "unknown option": ("passes:\n  - prune-magnitude: {sparsty: 0.5}\n", ("sparsty", "'sparsity'")),
    "option of the wrong type": ("passes:\n  - prune-magnitude: {sparsity: most}\n", ("sparsity", "'most'")),
    "option out of range": ("passes:\n  - prune-magnitude: {sparsity: 80}\n", ("sparsity", "80")),
    "option that is not a number": ("passes:\n  - prune-magnitude: {sparsity: .nan}\n", ("sparsity",)),
    "negative budget": ("passes: []\nbudget: {max_drop: -1}\n", ("max_drop",)),
    "unknown import": ("imports: [defualt]\npasses: []\n", ("defualt", "'default'")),
    "import of itself": ("imports: [recipe.yaml]\npasses: []\n", ("recipe.yaml",)),
    "two passes in one entry": ("passes:\n  - {fold-constants: {}, eliminate-dead: {}}\n", ("passes",)),
    "a list": ("- fold-constants\n", ("recipe.yaml",)),
    "a number": ("42\n", ("recipe.yaml",)),
    "nothing": ("", ("recipe.yaml",)),
    "no YAML": ("passes: [fold-constants\n", ("recipe.yaml",)),
    "binary": ("passes: \x00\x01\n", ("recipe.yaml",)),
    "Python objects": ("passes: !!python/object/apply:os.system ['touch unsafe']\n", ("recipe.yaml",)),
    "a bomb of aliases": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        )
        + "passes: *i\n",
        ("recipe.yaml",),
    ),
    "deep nesting": ("passes: " + "[" * 5000 + "]" * 5000 + "\n", ("recipe.yaml",)),
}


@pytest.mark.parametrize("case", RECIPES)
def test_wrong_recipe_is_refused_with_the_place(
    run: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text, words = RECIPES[case]
    (tmp_path / "recipe.yaml").write_text(text)
    ended = run("compile", demo.CNN, "-o", "out", "--recipe", "recipe.yaml")
    assert_refused(ended, "GO-C00[0-9]", 2, *words)
    assert len(ended.err) < 2000
    assert_only(tmp_path, ["recipe.yaml"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "spares"], ["spares", "'sparse'"]),
        (["--recipe", "/no/such.yaml"], ["/no/such.yaml"]),
        (["--recipe", "sparse", "--set", "prune-second-order.sparsty=0.5"], ["sparsty", "'sparsity'"]),
        (["--recipe", "sparse", "--set", "prune-magnitud.sparsity=0.5"], ["prune-magnitud"]),
        (["--recipe", "sparse", "--set", "prune-second-order.sparsity=lots"], ["sparsity", "lots"]),
        (["--recipe", "sparse", "--set", "sparsity"], ["sparsity"]),
        (["--skip", "fold-constant"], ["fold-constant"]),
        (["--max-drop", "-1"], ["-1"]),
        (["--max-drop", "nan"], ["nan"]),
        (["--verify", "very"], ["very"]),
        (["--target", "toaster"], ["toaster"]),
        (["--metric", "nothing"], ["nothing"]),
        (["--seed", "x"], ["x"]),
        (["--no-such-option"], ["no-such-option"]),
    ],
)
def test_wrong_option_is_refused_with_its_value(
    run: Callable[..., Ended], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    ended = run("compile", demo.CNN, "-o", tmp_path / "out", *arguments)
    assert_refused(ended, "GO-[CU]00[0-9]", 2, *words)
    assert_only(tmp_path, [])


@pytest.mark.parametrize("verb", ["compil", "", "--nothing"])
def test_wrong_verb_is_refused(run: Callable[..., Ended], verb: str) -> None:
    assert_refused(run(verb), "GO-U001", 2, verb)
