"""Runs commands to their end."""

import os
import subprocess
from pathlib import Path

TIMEOUT = 600


def run_command(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command to its end and return what it printed to its standard output.

    Raises:
        RuntimeError: If it ends with another status than 0; the message is all that it printed.
    """
    run = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"{run.stdout}\n{run.stderr}".strip() or f"status {run.returncode}")
    return run.stdout
