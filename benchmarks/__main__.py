"""``python -m benchmarks``: tables of ratios, each of sides that took turns in this run."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import compiling, gpt_and_vit, memory, monitoring, peers, readings, scaling, trainer, training
from benchmarks.environment import environment
from benchmarks.sizes import SIZES, Settings
from benchmarks.tables import Row, markdown, write

SUITES: dict[str, Callable[[Settings], Iterable[Row]]] = {
    "training": training.run,
    "readings": readings.run,
    "monitoring": monitoring.run,
    "trainer": trainer.run,
    "peers": peers.run,
    "memory": memory.run,
    "scaling": scaling.run,
    "compiling": compiling.run,
    "gpt_and_vit": gpt_and_vit.run,
}
DEFAULT_SIZES = {"cpu": "c1,c2,c3", "cuda": "g1,g2"}
CHECK_ACCURACY = ("readings",)
"""Suites that take all sizes even in a quick run, which takes the first one elsewhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites and return the exit status.

    It is 1 if a suite failed, an accuracy is out of bounds or a network was recompiled. Goals of speed and memory are
    shown, with whether they are met, and fail nothing.
    """
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device.", file=sys.stderr)
        return 2
    names = _chosen(options.only, SUITES)
    sizes = tuple(SIZES[name] for name in _chosen(options.sizes or DEFAULT_SIZES[options.device], SIZES))
    settings = Settings(
        sizes,
        torch.device(options.device),
        rounds=options.repeats or (2 if options.quick else 9),
        seconds=0.02 if options.quick else 0.2,
        quick=options.quick,
    )
    _silence()
    where, suites = environment(settings.device), dict[str, list[Row]]()
    print("\n".join(f"- {name}: {value}" for name, value in where.items()))
    for name in names:
        is_short = options.quick and not options.sizes and name not in CHECK_ACCURACY
        suites[name] = []
        for row in _rows(name, replace(settings, sizes=sizes[:1]) if is_short else settings):
            suites[name].append(row)
            if options.output is not None:  # after each row: a long run may be cut short
                found = {name: [row.as_json() for row in rows] for name, rows in suites.items()}
                report = {"environment": where, "quick": settings.quick, "suites": found}
                write(options.output, report, "\n\n".join(map(_shown, suites, suites.values())))
        print(f"\n{_shown(name, suites[name])}", flush=True)
    broken = [reason for rows in suites.values() for row in rows for reason in row.broken()]
    print(*broken, sep="\n", end="\n" if broken else "", file=sys.stderr)
    return 1 if broken else 0


def _rows(name: str, settings: Settings) -> Iterator[Row]:
    """Rows of a suite; an error ends it with a row that says so, and leaves the others alone."""
    try:
        yield from SUITES[name](settings)
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())
        yield Row(name, "", note=f"FAILED: {reason[:300]}", failed=True)


def _shown(name: str, rows: Sequence[Row]) -> str:
    return f"## {name}\n\n{markdown(rows)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="check that everything runs; the times mean little")
    parser.add_argument("--only", default=",".join(SUITES), help="suites, by default all: %(default)s")
    parser.add_argument("--sizes", help=f"of {', '.join(SIZES)}; by default c1,c2,c3 or, on CUDA, g1,g2")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--repeats", type=int, help="rounds, by default 9, or 2 with --quick")
    return parser


def _chosen(names: str, known: Collection[str]) -> list[str]:
    chosen = names.split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return chosen


def _silence() -> None:
    """Keep advice of Lightning out of the tables."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
