"""Runs the scripts of this folder with a Python that may have nothing else of the checkout."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
TIMEOUT = 600


def run_script(name: str, *arguments: str, python: str | Path = sys.executable, cwd: Path) -> str:
    """Run a script to its end and return what it printed.

    Raises:
        RuntimeError: If it ends with another status than 0; the message is what it printed.
    """
    # -I: neither the folder of the script nor PYTHONPATH may bring modules that are not installed.
    return run_command(python, "-I", FOLDER / name, *arguments, cwd=cwd)


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
