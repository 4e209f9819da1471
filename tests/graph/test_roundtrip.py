"""Reading and writing a model gives the same bytes: ONNX's own test models, crafted ones, real ones."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import onnx
import onnx.backend.test
import pytest
from crafted import crafted_models
from onnx import ModelProto
from suite import generated_cases, stored_cases

from graphopt.graph import Model, dump_text, read_model

if TYPE_CHECKING:
    from pathlib import Path

CRAFTED = dict(crafted_models())
SAMPLE = 16  # every 16th model in the fast suite


def check_exact(proto: ModelProto, base: Path | None = None) -> None:
    """Check that a model comes back byte for byte: untouched, with everything decoded, and as a copy."""
    source = proto.SerializeToString(deterministic=True)
    model = read_model(proto, base=base)
    assert model.to_bytes(inline=False) == source
    decode_everything(model)
    assert model.to_bytes(inline=False) == source
    assert model.copy().to_bytes(inline=False) == source
    assert proto.SerializeToString(deterministic=True) == source, "the source was changed"


def decode_everything(model: Model) -> None:
    """Read everything that is decoded when it is asked for."""
    for _, node in model.walk():
        assert isinstance(node.attrs, dict)
        assert isinstance(node.metadata, dict)
        for tensor in (*node.inputs, *node.outputs):
            assert tensor.shape is None or len(tensor.shape) >= 0
            assert tensor.onnx_dtype >= 0
    assert dump_text(model)


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_feature_survives(name: str) -> None:
    check_exact(CRAFTED[name])


def test_backend_suite_sample_is_byte_exact() -> None:
    paths = stored_cases()[::SAMPLE]
    assert len(paths) > 5
    for path in paths:
        check_exact(onnx.load(path, load_external_data=False))


@pytest.mark.slow
def test_backend_suite_is_byte_exact() -> None:
    count = 0
    for _, proto in generated_cases():
        check_exact(proto)
        count += 1
    for path in stored_cases():
        check_exact(onnx.load(path, load_external_data=False))
        count += 1
    assert count > 1900


def asset_models(folder: Path) -> list[Path]:
    return sorted([*folder.glob("models/*.onnx"), *folder.glob("graphs/*.onnx")])


def test_small_real_models_are_byte_exact(assets: Path) -> None:
    paths = [path for path in asset_models(assets) if path.stat().st_size < 400_000]
    assert paths
    for path in paths:
        check_exact(onnx.load(path, load_external_data=False), base=path.parent)
        assert read_model(path).to_bytes(inline=False) == onnx.load(path, load_external_data=False).SerializeToString(
            deterministic=True
        )


@pytest.mark.slow
def test_real_models_are_byte_exact(assets: Path) -> None:
    for path in asset_models(assets):
        source = onnx.load(path, load_external_data=False).SerializeToString(deterministic=True)
        model = read_model(path)
        assert model.to_bytes(inline=False) == source, path.name
        decode_everything(model)
        assert model.to_bytes(inline=False) == source, path.name


@pytest.mark.skipif("GRAPHOPT_ASSETS" not in os.environ, reason="GRAPHOPT_ASSETS is not set: no real models")
def test_reading_does_not_touch_the_file(assets: Path) -> None:
    path = asset_models(assets)[0]
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    read_model(path).to_bytes()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_text_dump_names_every_node_and_is_stable() -> None:
    for name in ("body_with_everything", "function_called", "loop_with_captures"):
        model = read_model(CRAFTED[name])
        text = dump_text(model)
        assert text == dump_text(read_model(CRAFTED[name]))
        assert all(node.op in text for _, node in model.walk())
