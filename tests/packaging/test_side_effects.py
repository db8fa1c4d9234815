"""The check of side effects sees what a bad module changes."""

import multiprocessing

from tests.packaging.side_effects import side_effects

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


def test_side_effects_are_seen(tmp_path, monkeypatch):
    """In forks of this process, which stays as it is."""
    (tmp_path / "noisy.py").write_text(NOISY)
    (tmp_path / "quiet.py").write_text("import os")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", False)  # compiling a module is not an effect of that module
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(side_effects, ("quiet",)) == []
        found = pool.apply(side_effects, ("noisy",))
    assert [effect for effect in SEEN if not any(line.startswith(effect) for line in found)] == []
