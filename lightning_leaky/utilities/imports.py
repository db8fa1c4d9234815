"""Objects by their import path, as a configuration file names them."""

from __future__ import annotations

import pydoc
from functools import lru_cache


@lru_cache
def located(path: str) -> object | None:
    """Return what an import path names, as ``"torch.nn.Linear"``, or ``None`` if it names nothing."""
    if "." not in path or not all(part.isidentifier() for part in path.split(".")):
        return None
    try:
        return pydoc.locate(path)
    except pydoc.ErrorDuringImport:
        return None
