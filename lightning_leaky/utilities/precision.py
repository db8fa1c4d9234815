"""Products of float32 matrices in float32, whatever the user has set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_BACKENDS: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@contextmanager
def ieee_products() -> Iterator[None]:
    """Multiply float32 matrices without TF32, bfloat16 or autocast; restore the settings on exit."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        told = [backend.fp32_precision for backend in _BACKENDS]
        if {torch.backends.fp32_precision, *told} <= {"none", "ieee"}:  # type: ignore[attr-defined]
            yield
            return
        older = _by_older_name()
        try:
            if older != "highest":
                torch.set_float32_matmul_precision("highest")  # sets those of all backends
            _tell(["ieee"] * len(_BACKENDS))
            yield
        finally:
            if older != "highest":
                torch.set_float32_matmul_precision(older)
            _tell(told)


def _by_older_name() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # backends were set one by one
        return "highest"


def _tell(precisions: Sequence[str]) -> None:
    for backend, precision in zip(_BACKENDS, precisions, strict=True):
        backend.fp32_precision = precision
