"""Keeps linear algebra on one thread.

The threads of a BLAS library wait for each other by spinning. For the small matrices of single layers that gains
little, on a busy machine it costs tenfold, and sums in another order give other last bits.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from collections.abc import Iterator


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block with the matrix products and solvers of numpy on one thread."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
