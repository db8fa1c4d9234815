"""What importing a module changes in a process that has imported Lightning.

Loaded modules and the definitions in them are no side effects, and neither is that Python compiles them.
"""

import builtins
import contextlib
import gc
import importlib
import io
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch  # noqa: F401  its own side effects are not ours
import numpy as np
import torch
from torch.nn.modules import module as torch_module

TASKS = Path("/proc/self/task")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events of other things that an import should not do; files are opened to be read, and only then.
FORBIDDEN = {
    "os.chdir",
    "os.chmod",
    "os.fork",
    "os.link",
    "os.mkdir",
    "os.posix_spawn",
    "os.putenv",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.system",
    "os.truncate",
    "os.unsetenv",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
}


def loggers() -> dict[str, tuple[object, ...]]:
    """The loggers that somebody has configured; asking for a logger is no configuration."""
    known = logging.root.manager.loggerDict.items()
    every = {"root": logging.root} | {name: logger for name, logger in known if isinstance(logger, logging.Logger)}
    fresh = (logging.NOTSET, True, False, (), ())
    states = {
        name: (logger.level, logger.propagate, logger.disabled, tuple(logger.handlers), tuple(logger.filters))
        for name, logger in every.items()
    }
    return {name: state for name, state in states.items() if state != fresh}


STATE: dict[str, Callable[[], object]] = {
    "filters of warnings": lambda: tuple(warnings.filters),
    "loggers": loggers,
    "logging": lambda: (logging.root.manager.disable, logging.raiseExceptions, logging.getLoggerClass()),
    "environment variables": lambda: dict(os.environ),
    "working folder": os.getcwd,
    "sys.path": lambda: tuple(sys.path),
    "hooks of sys": lambda: (sys.excepthook, sys.displayhook, sys.getrecursionlimit(), tuple(sys.meta_path)),
    "built-in names": lambda: frozenset(vars(builtins)),
    "threads": lambda: (threading.active_count(), len(list(TASKS.iterdir())) if TASKS.exists() else 0),
    "children": lambda: len(multiprocessing.active_children()),
    "start method": lambda: multiprocessing.get_start_method(allow_none=True),
    "signal handlers": lambda: tuple(signal.getsignal(number) for number in signal.valid_signals()),
    "garbage collection": lambda: (gc.isenabled(), gc.get_threshold()),
    "random state of Python": random.getstate,
    "random state of numpy": lambda: str(np.random.get_state()),  # noqa: NPY002  the global one is meant
    "random state of torch": lambda: torch.get_rng_state().numpy().tobytes(),
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "threads of torch": lambda: (torch.get_num_threads(), torch.get_num_interop_threads()),
    "grad mode": lambda: (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
    "determinism": lambda: (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
    "precision": lambda: (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32),
    "cuDNN": lambda: (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
    "autocast": lambda: torch.is_autocast_enabled("cpu"),
    "hooks of all modules": lambda: [
        tuple(hooks) for name, hooks in vars(torch_module).items() if name.startswith("_global_") and hooks
    ],
    "safe globals": lambda: tuple(torch.serialization.get_safe_globals()),
    "sharing strategy": torch.multiprocessing.get_sharing_strategy,
}


def snapshot() -> dict[str, object]:
    """Everything that an import should leave alone."""
    return {name: state() for name, state in STATE.items()}


def acts_of(module: str) -> list[str]:
    """Import the module and return what it did: files written, processes started, and so on."""
    acts: list[str] = []
    is_on = True

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        # An audit hook stays for good, hence the switch. A file descriptor was opened before, by its name.
        is_named = event == "open" and not isinstance(arguments[0], int)
        is_written = is_named and isinstance(arguments[2], int) and bool(arguments[2] & WRITING)
        if is_on and (is_written or event in FORBIDDEN) and "__pycache__" not in str(arguments):
            acts.append(f"written: {arguments[0]}" if is_written else f"{event} {arguments}")

    sys.addaudithook(hear)
    importlib.import_module(module)
    is_on = False
    return acts


def side_effects(module: str) -> list[str]:
    """Import the module and return one line a side effect."""
    printed = io.StringIO()
    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        warnings.simplefilter("always")
        before = snapshot()
        acts = acts_of(module)
        after = snapshot()
    changed = [f"changed: {name}" for name in before if before[name] != after[name]]
    told = [f"warned: {warning.message}" for warning in caught]
    said = [f"printed: {printed.getvalue()!r}"] if printed.getvalue() else []
    return changed + acts + told + said
