"""Objects by import path, as in configuration files."""

from __future__ import annotations

import pydoc
from functools import lru_cache


@lru_cache
def located(path: str) -> object | None:
    """Return the object of an import path, as ``"torch.nn.Linear"``, or ``None``."""
    if "." not in path or not all(part.isidentifier() for part in path.split(".")):
        return None
    try:
        return pydoc.locate(path)
    except pydoc.ErrorDuringImport:
        return None
