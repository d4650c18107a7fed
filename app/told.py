"""What was wrong, told to whoever asked: people on the page and programs through the API."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

from app import text
from lrdiff.errors import LrdiffError

log = logging.getLogger(__name__)


def told(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Let people and programs read what was wrong with a request; any other error stays in the server's log."""

    @wraps(operation)
    def call(*words: Any, **named: Any) -> Any:
        try:
            return operation(*words, **named)
        except LrdiffError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except gr.Error:
            raise
        except Exception as error:
            log.exception("%s failed", operation.__name__)
            raise gr.Error(
                text.FAILED_UNEXPECTEDLY.format(error=type(error).__name__), print_exception=False
            ) from error

    return call
