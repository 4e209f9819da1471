"""Running models: sessions, feeds and latency."""

from graphopt.runtime.feeds import Feeds
from graphopt.runtime.inputs import InputSpec, input_specs, output_names
from graphopt.runtime.latency import latency, timings
from graphopt.runtime.random_feeds import random_feeds
from graphopt.runtime.session import platform_tag, run, session

__all__ = [
    "Feeds",
    "InputSpec",
    "input_specs",
    "latency",
    "output_names",
    "platform_tag",
    "random_feeds",
    "run",
    "session",
    "timings",
]
