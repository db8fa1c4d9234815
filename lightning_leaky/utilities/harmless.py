"""What may fail without stopping a training, and what is said of it once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_leaky.utilities.processes import LostProcessError, warn


def warn_once(message: str, subject: str, said: set[str], is_own: bool = False) -> None:
    """Warn of a subject, numbers in it aside, where it is not among what has been said; `is_own` as of `warn`."""
    known = re.sub(r"\d", "", subject)
    if known not in said:
        said.add(known)
        warn(message, is_own)


@contextmanager
def harmless(task: str, said: set[str], is_own: bool = False) -> Iterator[None]:
    """Let a task fail with one warning a reason: nobody's training stops because of it.

    A lost process stops it. To go on would save a checkpoint without the adaptation that the others have missed.
    """
    try:
        yield
    except LostProcessError:
        raise
    except Exception as error:  # whatever a rule or a logger may raise
        message = f"{task} has failed, and the training goes on: {type(error).__name__}: {error}"
        warn_once(message, message, said, is_own)
