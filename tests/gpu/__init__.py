"""What needs a GPU: `python -m tests.gpu`."""

NO_CUDA = "NOT RUN: no CUDA device. Run it where there is one, or rehearse it on a CPU: `--device cpu` (`--help`)."
