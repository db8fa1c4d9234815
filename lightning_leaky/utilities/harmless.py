"""Failures that warn once and do not stop training."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_leaky.utilities.processes import LostProcessError, num_processes, warn


def warn_once(message: str, subject: str, said: set[str], is_own: bool = False) -> None:
    """Warn unless the subject, apart from its numbers, is in `said`; `is_own` as of `warn`."""
    known = re.sub(r"\d", "", subject)
    if known not in said:
        said.add(known)
        warn(message, is_own)


@contextmanager
def harmless(task: str, said: set[str], is_own: bool = False, step: int | None = None) -> Iterator[None]:
    """Let a task fail with one warning per reason, so that training goes on.

    A lost process stops it, because a later checkpoint would lack the adaptation; the error names the optimizer step.
    """
    try:
        yield
    except Exception as error:  # from rules or loggers
        if _is_of_processes(error):
            at = "" if step is None else f", at optimizer step {step}"
            raise LostProcessError(f"{task}{at}: {error}") from error
        message = f"{task} has failed, and the training goes on: {type(error).__name__}: {error}"
        warn_once(message, message, said, is_own)


def _is_of_processes(error: Exception) -> bool:
    """Whether a collective has failed, ours or one of a signal handler that interrupted us."""
    if isinstance(error, LostProcessError):
        return True
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__)) if num_processes() > 1 else ()
    return any(frame.f_globals.get("__name__", "").startswith("torch.distributed.") for frame in frames)
