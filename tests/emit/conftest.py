from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import graphopt
from graphopt import demo

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session", params=[("int8", demo.CNN), ("sparse", demo.TRANSFORMER)], ids=["int8", "sparse"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle that was moved after it was written."""
    recipe, model = request.param
    folder = tmp_path_factory.mktemp("bundle")
    graphopt.compile(model, recipe=recipe, data=demo.CALIBRATION).save(folder / "written")
    return (folder / "written").rename(folder / "moved")
