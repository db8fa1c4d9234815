"""``python -m examples.layers``: measure what is missing, then draw; ``--draw`` draws what there is."""

from __future__ import annotations

from examples.layers import pretrained, which
from examples.paper.__main__ import run_studies

if __name__ == "__main__":
    run_studies({one.STUDY.name: one.STUDY for one in (which, pretrained)}, "layers")
