"""Golden numbers are made on one thread."""

from __future__ import annotations

from tests.trainers.conftest import one_thread

__all__ = ["one_thread"]
