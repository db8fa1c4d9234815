"""``python -m examples.paper STUDY …``: measure what is missing, then draw; ``--draw`` draws what there is."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib

from examples.paper import convergence, cross_entropy, energies, meshes, options, real_data, refinement, rules
from examples.paper.study import Results, Study, run

ROOT = Path(__file__).parents[2]
_MODULES = (energies, rules, options, meshes, convergence, refinement, real_data, cross_entropy)
STUDIES = {module.STUDY.name: module.STUDY for module in _MODULES}


def run_studies(studies: Mapping[str, Study], group: str) -> None:
    """Run the studies of a group that the command line asks for, one after another.

    Args:
        studies: All of them, by name.
        group: Name of the folder of ``examples`` with their results, and of the one of ``docs`` with their figures.
    """
    options = _parser(studies, group).parse_args()
    matplotlib.use("Agg")
    for name in options.studies or studies:
        reduced = ROOT / "runs" / "reduced" / group / name
        folder = reduced if options.reduced else ROOT / "examples" / group / "results" / name
        study = studies[name]
        results = Results(folder) if options.draw else run(study, folder, options.reduced, options.workers)
        draw(study, results, reduced if options.reduced else ROOT / "docs" / group / name)


def draw(study: Study, results: Results, folder: Path) -> None:
    """Write the figures of a study as PNG and SVG, its tables as Markdown, and print these."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in study.figures(results.tables).items():
        for ending in ("png", "svg"):
            # Nothing that changes from run to run, so that a figure that says the same is the same file.
            figure.savefig(folder / f"{name}.{ending}", dpi=110, metadata={"Date": None} if ending == "svg" else {})
    for name, table in study.tables(results.tables).items():
        text = table.to_markdown(index=False, floatfmt=".4g")
        (folder / f"{name}.md").write_text(f"{text}\n", encoding="utf-8")
        print(f"\n{name}\n{text}")


def _parser(studies: Iterable[str], group: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"python -m examples.{group}", description=__doc__)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(studies)}; by default all")
    parser.add_argument("--reduced", action="store_true", help="small and short: that it runs, not what it finds")
    parser.add_argument("--draw", action="store_true", help="draw from the results that there are")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="settings at a time (%(default)s)")
    return parser


if __name__ == "__main__":
    run_studies(STUDIES, "paper")
