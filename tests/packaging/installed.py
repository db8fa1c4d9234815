"""Whether the package that is imported is the one that is installed, and says its own version."""

import importlib.metadata
import sys
from pathlib import Path

import lightning_leaky

file, installed = Path(lightning_leaky.__file__), importlib.metadata.version("lightning-leaky")
if not file.is_relative_to(sys.prefix):
    sys.exit(f"{file} is not in {sys.prefix}")
if lightning_leaky.__version__ != installed:
    sys.exit(f"`__version__` is {lightning_leaky.__version__}, the installed version {installed}")
