"""What is built of a checkout, and an environment that holds nothing else."""

import sys
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

from tests.packaging.archives import ROOT
from tests.packaging.commands import run_command

CONSTRAINTS = ROOT / "constraints.txt"


class Product(NamedTuple):
    """What is checked, and a folder outside of the checkout to do it in."""

    folder: Path

    @property
    def dist(self) -> Path:
        """The folder of the archives."""
        return self.folder / "dist"

    @property
    def wheel(self) -> Path:
        """The wheel."""
        return next(self.dist.glob("*.whl"))

    @property
    def sdist(self) -> Path:
        """The source archive."""
        return next(self.dist.glob("*.tar.gz"))

    @property
    def python(self) -> Path:
        """Python of the environment that holds the wheel and its dependencies."""
        return self.folder / "environment" / "bin" / "python"

    def empty_folder(self) -> Path:
        """A new folder, so that no check sees what another has written."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def pip(self, *arguments: str | Path) -> None:
        """Run pip for the environment, which has none of its own."""
        run_command(sys.executable, "-m", "pip", "--python", self.python, *arguments, cwd=self.folder)


def build(product: Product) -> None:
    """Build the source archive, and the wheel from that, with the pinned build backend."""
    options = ("--outdir", product.dist, ROOT)
    run_command(sys.executable, "-m", "build", *options, cwd=product.folder, PIP_CONSTRAINT=str(CONSTRAINTS))


def install(product: Product) -> None:
    """Make the environment and install the wheel; torch first: the Makefile says why."""
    venv.create(product.python.parent.parent, with_pip=False)
    for what in ("torch", product.wheel):
        # Python compiles what is imported, a small part of torch.
        product.pip("install", "--no-compile", "--constraint", CONSTRAINTS, what)
