"""Compile the demo CNN to 8 bit and use the result. Run it in the folder it lies in: it imports metric.py."""

import numpy as np
from metric import accuracy

import graphopt
from graphopt import demo

result = graphopt.compile(demo.CNN, recipe="int8", data=demo.CALIBRATION, metric=accuracy, max_drop=1.0)
print(result.report.quality)
result.save("digits_bundle", force=True)
session = graphopt.session("digits_bundle")
with np.load(demo.TEST) as test:
    print(session.run(["logits"], {"image": test["image"][:8]})[0].argmax(axis=1), test["label"][:8])
