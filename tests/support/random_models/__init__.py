"""Random models that ONNX Runtime runs and that right rewrites leave alike; see `model` and `values`."""

from random_models.model import Made, random_model, random_models

__all__ = ["Made", "random_model", "random_models"]
