"""Console script `lightning-leaky`: `fit`, `validate`, `test`, `predict` on LightningCLI; `report` and `compare`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule
from lightning_utilities.core.imports import RequirementCache

from lightning_leaky.explain.diagnosis import paragraphs
from lightning_leaky.module import LeakyResNetModule
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.paths.leaky_path import knows_weights
from lightning_leaky.reading.settings import ReadingSettings
from lightning_leaky.report import as_html, as_json, compare, read_run, report_on
from lightning_leaky.report.comparison import table_of
from lightning_leaky.report.page import name_of
from lightning_leaky.utilities.progress import watched

_OURS = "Of this package: `lightning-leaky report` on a trained model, `lightning-leaky compare` of runs (see --help)."


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; every argument of a fit can also be set from YAML with ``--config``.

    Args:
        args: Arguments in place of those of the process.

    Raises:
        SystemExit: If jsonargparse is missing, or the arguments are wrong.
    """
    # Lightning imports its command line without jsonargparse, and complains only where it is used.
    needed = RequirementCache("jsonargparse[signatures]>=4.39")
    if not needed:
        raise SystemExit(f"{needed}\nThe command line needs jsonargparse: pip install 'lightning-leaky[cli]'.")
    given = list(sys.argv[1:] if args is None else args)
    # As `python -m` does: a class path may name a module of the user's in the folder the command is given in.
    sys.path.insert(0, os.getcwd())
    commands = {"report": _report, "compare": _compare}
    try:
        if given and given[0] in commands:
            commands[given[0]](given[1:])
        else:
            _lightning(args)
    except ModuleNotFoundError as error:
        if "lightning-leaky[" not in str(error):  # a module of the user's own is missing: show where
            raise
        raise SystemExit(str(error)) from error


def _lightning(args: Sequence[str] | None) -> None:
    from lightning.pytorch.cli import LightningCLI

    LightningCLI(
        LightningModule,  # anybody's: the callbacks attach to any
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"epilog": _OURS},
        args=None if args is None else list(args),  # Lightning warns where both are given
    )


def _parser(command: str, description: str) -> Any:
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"lightning-leaky {command}", description=description)


def _report(args: Sequence[str]) -> None:
    parser = _parser("report", "Write a report on a trained model: one page of HTML, and the numbers as JSON.")
    parser.add_argument("ckpt", type=str, help="Checkpoint of a LightningModule.")
    parser.add_function_arguments(write_report, skip={"ckpt"})
    write_report(**parser.instantiate_classes(parser.parse_args(args)))


def write_report(
    ckpt: str,
    data: LightningDataModule,
    model: type[LightningModule] = LeakyResNetModule,
    split: Literal["train", "val", "test"] = "train",
    layers: str | None = None,
    max_batches: int | None = None,
    output: str = "report",
    weights_only: bool | None = None,
    **settings: Any,
) -> None:
    """Read a trained model over a data set, and write ``index.html`` and ``report.json``.

    Args:
        ckpt: Checkpoint of a LightningModule.
        data: Data module, by class path.
        model: Class of the LightningModule, with ``save_hyperparameters``, as ours.
        split: Which of its data to read.
        layers: Pattern of the layers' names, as of `EnergyMonitor`, where the model has no leaky path.
        max_batches: Read so many batches at most; all by default.
        output: Folder to write to.
        weights_only: As of ``torch.load``; ``False`` for a checkpoint with objects in it, which you trust.
        **settings: How to read, as of `ReadingSettings`. A `weight_decay` is for a module that is none of ours, and
            needs a method ``cost``.
    """
    told = ReadingSettings(**settings)
    module = _load(model, ckpt, weights_only)
    # A module's own weight decay is the λ of the objective only where its weights are those of the theory.
    is_ours = knows_weights(path_of(module, layers, told.effective_depth))
    cost, decay = getattr(module, "cost", None), getattr(module, "weight_decay", None) if is_ours else None
    report = report_on(
        module,
        watched(_loader(data, split), max_batches),
        title=f"{name_of(module)}, {Path(ckpt).name}",
        facts={"checkpoint": ckpt, "data": f"{type(data).__name__}, {split}"},
        layers=layers,
        **vars(told) | ({"cost": cost, "weight_decay": told.weight_decay or decay} if callable(cost) else {}),
    )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(as_json(report), encoding="utf-8")
    (folder / "index.html").write_text(as_html(report), encoding="utf-8")
    _say(*paragraphs(report.readings), f"Report: {folder / 'index.html'}")


def _load(model: type[LightningModule], ckpt: str, weights_only: bool | None) -> LightningModule:
    """The module of a checkpoint, or SystemExit that says what is missing."""
    try:
        return model.load_from_checkpoint(ckpt, map_location="cpu", weights_only=weights_only)
    except KeyError as error:
        if "pytorch-lightning_version" not in str(error):  # from within the module
            raise
        raise SystemExit(f"`ckpt` must be a checkpoint of Lightning, and {ckpt} has no {error}.") from error
    except TypeError as error:
        if f"{model.__name__}.__init__()" not in str(error):
            raise
        raise SystemExit(
            f"`model` {model.__name__} cannot be made from the hyper-parameters in {ckpt}: {error}. Call "
            "`save_hyperparameters()` in its __init__ before training, or use `lightning_leaky.report.report_on`."
        ) from error


def _loader(data: LightningDataModule, split: str) -> Iterable[Any]:
    data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    loader = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()
    if not isinstance(loader, Iterable) or isinstance(loader, (list, tuple, dict)):
        raise SystemExit(f"`data` must give one loader of {split} batches, got {type(loader).__name__}.")
    return loader


def _compare(args: Sequence[str]) -> None:
    parser = _parser("compare", "Lay runs side by side: their last numbers, and their layers as lines.")
    parser.add_argument("runs", nargs="+", help="Folders with logs of TensorBoard or CSV, or JSON of reports.")
    parser.add_argument("--output", default="comparison.html", help="Page of HTML to write.")
    given = parser.parse_args(args)
    try:
        runs = [read_run(run) for run in given.runs]
    except ValueError as error:
        raise SystemExit(str(error)) from error
    Path(given.output).write_text(compare(runs), encoding="utf-8")
    rows = [["", *(run.name for run in runs)], *table_of(runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    _say(*("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows))
    _say(f"Page: {given.output}")


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
