"""Memory that tensors give back to the C library stays with the process: faster on a processor."""

from __future__ import annotations

import ctypes
import logging

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
KEPT = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26, M_ARENA_MAX: 1}
"""Bytes, and how many heaps: one, since those of further threads are small."""


def keep_freed_memory() -> bool:
    """Have glibc take large tensors from its heap, and keep what is freed for the next ones.

    Otherwise every tensor above 32 MB is mapped and unmapped anew, and the kernel clears each of its pages when it is
    first written to: a quarter of the time in which heads are searched, tuned and drawn on a processor, in a virtual
    machine (DECISION 56).
    The price is memory, since freed pieces do not always fit what comes next: a tenth more in that search.

    Returns:
        Whether the C library took it; others than glibc have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        taken = False
    else:
        taken = all(mallopt(name, value) for name, value in KEPT.items())
    if not taken:
        log.debug("this C library has no mallopt for it; memory is taken as it does by itself")
    return taken
