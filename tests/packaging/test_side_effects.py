"""Importing the package changes nothing, and the script that says so sees what a bad module changes."""

import sys

import pytest

from tests.packaging.scripts import FOLDER, run_command, run_script

NOISY = """
import logging, os, random, sys, threading, warnings
import torch

open("written.txt", "w").close()
os.makedirs("made")
warnings.warn("hello")
warnings.simplefilter("ignore")
logging.basicConfig(level=logging.INFO)
logging.getLogger("lightning").setLevel(logging.DEBUG)
os.environ["OMP_NUM_THREADS"] = "7"
threading.Thread(target=threading.Event().wait, daemon=True).start()
random.random()
torch.rand(1)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(7)
torch.set_grad_enabled(False)
torch.nn.modules.module.register_module_forward_hook(print)
sys.path.insert(0, "")
print("hello")
"""
SEEN = [
    "written: written.txt",
    "os.mkdir",
    "warned: hello",
    "changed: filters of warnings",
    "changed: loggers",
    "changed: environment variables",
    "changed: threads",
    "changed: threads of torch",
    "changed: random state of Python",
    "changed: random state of torch",
    "changed: default dtype",
    "changed: grad mode",
    "changed: hooks of all modules",
    "changed: sys.path",
    "printed: 'hello",
]


def test_importing_the_package_has_no_side_effects(tmp_path):
    assert run_script("side_effects.py", "lightning_leaky", cwd=tmp_path).split() == []
    assert list(tmp_path.iterdir()) == []


def test_side_effects_are_seen(tmp_path):
    (tmp_path / "noisy.py").write_text(NOISY)
    with pytest.raises(RuntimeError) as told:
        run_command(sys.executable, FOLDER / "side_effects.py", "noisy", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert [effect for effect in SEEN if effect not in str(told.value)] == []
