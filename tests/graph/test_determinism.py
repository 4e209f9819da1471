"""The same edits give the same bytes in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from crafted import crafted_models
from graphopt.graph import Rewriter, dump_text, read_model, uses

digest = hashlib.sha256()
for name, proto in crafted_models():
    if name.startswith("dtype"):
        continue
    model = read_model(proto)
    for graph, node in list(model.walk()):
        if not node.outputs or not node.outputs[0].name:
            continue
        tensor = node.outputs[0]
        with Rewriter(model) as rw:
            scale = rw.constant(np.float32(0.5), near=node)
            new = rw.op("Mul", [tensor, scale], near=node, like=tensor, origin=[node])
            rw.replace_uses(tensor, new, where=lambda use: use.node.op != "Mul")
        for touched in rw.touched:
            digest.update(touched.name.encode())
    model.sort()
    digest.update(dump_text(model).encode())
    digest.update(model.copy().to_bytes())
print(digest.hexdigest())
"""


def test_two_processes_with_different_hash_seeds_agree() -> None:
    results = set()
    for seed in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-P", "-c", SCRIPT, str(Path(__file__).parent)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results.add(done.stdout)
    assert len(results) == 1
