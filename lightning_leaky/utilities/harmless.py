"""Failures that warn once and do not stop training."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_leaky.utilities.processes import LostProcessError, warn


def warn_once(message: str, subject: str, said: set[str], is_own: bool = False) -> None:
    """Warn unless the subject, apart from its numbers, is in `said`; `is_own` as of `warn`."""
    known = re.sub(r"\d", "", subject)
    if known not in said:
        said.add(known)
        warn(message, is_own)


@contextmanager
def harmless(task: str, said: set[str], is_own: bool = False) -> Iterator[None]:
    """Let a task fail with one warning per reason, so that training goes on.

    A lost process stops it, because a later checkpoint would lack the adaptation.
    """
    try:
        yield
    except LostProcessError:
        raise
    except Exception as error:  # from rules or loggers
        message = f"{task} has failed, and the training goes on: {type(error).__name__}: {error}"
        warn_once(message, message, said, is_own)
