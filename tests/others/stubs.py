"""Lets timm load where torchvision does not: it wants names of it at import, and none of what the tests call."""

import importlib
import sys
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

_PARTS = (".transforms", ".transforms.functional", ".models", ".models.feature_extraction", ".ops", ".ops.misc")


class _Stub(ModuleType):
    """A module that has every name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


def timm_module(name: str = "timm") -> Any:
    """Import timm, or a module of it; nobody else sees the stubs."""
    if _loads("torchvision"):
        return importlib.import_module(name)
    with patch.dict(sys.modules):
        before = set(sys.modules)
        sys.modules.update({f"torchvision{part}": _Stub(f"torchvision{part}") for part in ("", ".datasets", *_PARTS)})
        module = importlib.import_module(name)
        loaded = {key: value for key, value in sys.modules.items() if key not in before and "torchvision" not in key}
    sys.modules.update(loaded)
    return module


def _loads(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # missing, or of another build than torch
        return False
    return True
