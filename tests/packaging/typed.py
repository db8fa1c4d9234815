"""What mypy says, strictly, of a user's file and of one with mistakes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

FILES = [Path(__file__).with_name(name) for name in ("user.py", "misuse.py")]
# Parts of torch and of torchmetrics that take mypy most of its time, for types that neither file uses.
SKIPPED = (
    *(f"torch._{part}" for part in ("dynamo", "export", "functorch", "higher_order_ops", "inductor")),
    *(f"torch.{part}" for part in ("ao", "distributed", "distributions", "export", "fx", "onnx", "quantization")),
    "torchmetrics.functional",
)
SETTINGS = f"""
[mypy]
strict = True
[mypy-{",".join(f"{name}.*" for name in SKIPPED)}]
follow_imports = skip
"""
EXPECTED = re.compile(r"# wrong: ([\w-]+)$")
FOUND = re.compile(r"^([^:]+):(\d+): error: .*\[([\w-]+)\]$")


def differences(folder: Path, python: Path) -> list[str]:
    """Errors that mypy finds and should not, and those that it should find and does not.

    Args:
        folder: Where to check copies of the files; beside the source, mypy would read that, not what is installed.
        python: Python of the environment that holds the package.
    """
    for file in FILES:
        shutil.copy(file, folder)
    (folder / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    found = said(folder, python)
    expected = set().union(*map(expectations, FILES))
    return [f"not expected: {line}" for line in sorted(found - expected)] + [
        f"not found: {line}" for line in sorted(expected - found)
    ]


def expectations(file: Path) -> set[str]:
    """Errors that the file says are in it."""
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    return {f"{file.name}:{number}: {match[1]}" for number, line in lines if (match := EXPECTED.search(line))}


def said(folder: Path, python: Path) -> set[str]:
    """Errors that mypy finds: those of the files as they are expected there, others as they are told."""
    command = [sys.executable, "-m", "mypy", "--no-error-summary", f"--python-executable={python}"]
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    names = [file.name for file in FILES]
    run = subprocess.run([*command, *names], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if run.stderr:
        raise RuntimeError(run.stderr)
    lines = [line for line in run.stdout.splitlines() if ": note: " not in line]
    return {FOUND.sub(r"\1:\2: \3", line) for line in lines}
