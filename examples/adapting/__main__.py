"""``python -m examples.adapting``: measure what is missing, then draw; ``--draw`` draws what there is."""

from __future__ import annotations

from examples.adapting.studies import STUDIES
from examples.paper.__main__ import run_studies

if __name__ == "__main__":
    run_studies({study.name: study for study in STUDIES}, "adapting")
