"""Console script `lightning-leaky`: `fit`, `validate`, `test` and `predict` on LightningCLI."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lightning.pytorch import LightningDataModule, LightningModule


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; every argument can also be set from YAML with ``--config``.

    Args:
        args: Arguments in place of those of the process.

    Raises:
        SystemExit: If jsonargparse is missing, or the arguments are wrong.
    """
    # Imported here: Lightning needs jsonargparse for its command line, which nothing else of this package does.
    try:
        from lightning.pytorch.cli import LightningCLI
    except (ImportError, ModuleNotFoundError) as error:
        raise SystemExit(
            f"{error}\nThe command line needs jsonargparse: pip install 'lightning-leaky[cli]'."
        ) from error
    # As `python -m` does: a class path may name a module of the user's in the folder the command is given in.
    sys.path.insert(0, os.getcwd())
    LightningCLI(
        LightningModule,  # anybody's: the callbacks attach to any
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        args=None if args is None else list(args),
    )
