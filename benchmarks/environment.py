"""Where a run was measured."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import lightning_leaky


def environment(device: torch.device) -> dict[str, str | int]:
    """Versions, threads, processor, date and device of this run."""
    packages = ("torch", "lightning", "torchmetrics", "torchdiffeq", "delve", "weightwatcher")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "lightning-leaky": lightning_leaky.__version__,
        **{name: package_version(name) or "not installed" for name in packages},
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "cpu": _cpu_model(),
        "device": _name(device),
    }


def _name(device: torch.device) -> str:
    """A CPU says no more than that it is one."""
    if device.type != "cuda":
        return str(device)
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB, CUDA {torch.version.cuda}"


def package_version(name: str) -> str | None:
    """Version of a package, or ``None`` where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
