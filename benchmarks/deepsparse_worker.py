"""Runs one model in DeepSparse, in the environment of that package: one line "run" in, the seconds of one run out.

PYTHON deepsparse_worker.py MODEL.onnx THREADS FEED.npz
"""

import json
import sys
import time

import deepsparse  # type: ignore[import-not-found]
import numpy as np


def main() -> None:
    path, threads, feed = sys.argv[1], int(sys.argv[2]), np.load(sys.argv[3])
    engine = deepsparse.compile_model(path, batch_size=None, num_cores=threads)
    names = [each.strip() for each in getattr(engine, "input_names", [])] or list(feed)
    inputs = [np.ascontiguousarray(feed[name]) for name in names]
    outputs = engine.run(inputs)
    np.savez(sys.argv[3] + ".out.npz", *outputs)
    print(json.dumps({"version": deepsparse.__version__}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        engine.run(inputs, val_inp=False)
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


if __name__ == "__main__":
    main()
