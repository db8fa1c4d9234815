"""What the package costs, as ratios against other code in the same run: ``python -m benchmarks --help``."""

import os

# Before torch is loaded: threads that wait by spinning make every time that of whatever else uses a core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
