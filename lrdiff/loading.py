"""One network is built or loaded at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Keep other threads from building a network meanwhile; also a decorator, `@alone()`.

    diffusers and transformers change torch.nn for all threads while they load. A module that another thread builds at
    that moment has no weights ("Cannot copy out of meta tensor"), or ones that were never initialised.
    """
    with _LOCK:
        yield
