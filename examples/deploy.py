"""Run a compiled bundle with onnxruntime alone; graphopt is not needed where the model runs.

python deploy.py BUNDLE
"""

import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

bundle = Path(sys.argv[1])
machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
options = ort.SessionOptions()
options.intra_op_num_threads = 1
for library in bundle.glob(
    f"lib/{platform.system().lower()}-{machine}/*.so"
):  # only where the model uses our operators
    options.register_custom_ops_library(str(library))
session = ort.InferenceSession(bundle / "model.onnx", options, providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {"image": np.zeros((1, 1, 8, 8), np.float32)})[0]
print("class", int(logits.argmax()))
