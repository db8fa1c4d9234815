"""Console script `lightning-leaky`: LightningCLI, and `report`, `compare` and `drop`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.imports import RequirementCache

from lightning_leaky.dropping import bought, drop_layers, expense_of
from lightning_leaky.module import LeakyResNetModule
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.paths.leaky_path import knows_weights
from lightning_leaky.reading.settings import ReadingSettings
from lightning_leaky.report.comparison import compare, read_run, table_of
from lightning_leaky.report.page import as_html, as_json, content_of, name_of, report_on
from lightning_leaky.utilities.arguments import located
from lightning_leaky.utilities.progress import watched

# Other modules in a traceback are the user's.
_NOT_OF_USER = ["lightning_leaky", "lightning", "jsonargparse", "argparse", "yaml", "torch", "fsspec", "contextlib"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments; by default those of the process.

    Raises:
        SystemExit: If jsonargparse is missing or an argument is wrong.
    """
    needed = RequirementCache("jsonargparse[signatures]>=4.43")
    if not needed:
        raise SystemExit(f"{needed}\nTo install it: pip install 'lightning-leaky[cli]'.")
    given = list(sys.argv[1:] if args is None else args)
    # For class paths in the working directory.
    sys.path.insert(0, os.getcwd())
    try:
        if given and given[0] in _COMMANDS:
            _run(given[0], given[1:])
        else:
            _lightning(args)
    except ModuleNotFoundError as error:
        if "lightning-leaky[" not in str(error):  # the user's: show where
            raise
        raise SystemExit(str(error)) from error


def _run(name: str, args: Sequence[str]) -> None:
    from jsonargparse import ArgumentParser

    command, description, own = _COMMANDS[name]
    parser = ArgumentParser(prog=f"lightning-leaky {name}", description=description, exit_on_error=False)
    for argument, settings in own.items():
        parser.add_argument(argument, **settings)
    parser.add_function_arguments(command, skip={argument.strip("-") for argument in own})
    try:
        command(**parser.instantiate_classes(parser.parse_args(args)))
    except Exception as error:
        if _is_of_user(error):
            raise
        said = f"{'' if isinstance(error, ValueError) else f'{type(error).__name__}: '}{error}"
        raise SystemExit(f"lightning-leaky {name}: {' '.join(said.split())}") from error


def _is_of_user(error: Exception) -> bool:
    frames = [frame for one in (error, error.__cause__) if one for frame, _ in traceback.walk_tb(one.__traceback__)]
    return any(str(frame.f_globals.get("__name__")).split(".")[0] not in _NOT_OF_USER for frame in frames)


def _lightning(args: Sequence[str] | None) -> None:
    from lightning.pytorch.cli import LightningCLI

    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={
            "epilog": "Of this package: `lightning-leaky report` on a trained model, `lightning-leaky compare` of "
            "runs, and `lightning-leaky drop` of blocks."
        },
        args=None if args is None else list(args),  # Lightning warns if both are given
    )


def write_report(
    ckpt: str,
    data: LightningDataModule,
    model: type[LightningModule] = LeakyResNetModule,
    split: Literal["train", "val", "test"] = "train",
    layers: str | None = None,
    max_batches: int | None = None,
    output: str = "report",
    weights_only: bool | None = None,
    cost: str | None = None,
    removal_batches: int = 8,
    **settings: Any,
) -> None:
    """Read a trained model over a data set, and write ``index.html`` and ``report.json``.

    Args:
        ckpt: Checkpoint of a LightningModule.
        data: Data module, by class path.
        model: Class of the LightningModule, with ``save_hyperparameters``.
        split: Data to read.
        layers: Pattern of layer names, if the model has no leaky path.
        max_batches: Batches to read at most; all by default.
        output: Folder for both, made if missing.
        weights_only: As of ``torch.load``; ``False`` for a trusted checkpoint with objects in it.
        cost: Import path of C(outputs, targets), a mean over samples, as ``torch.nn.functional.cross_entropy``; by
            default the module's method ``cost``.
        removal_batches: Batches to measure the removal of blocks on, if there is a cost; 0 for none.
        **settings: Arguments of `ReadingSettings`; a `weight_decay` needs a cost.
    """
    told = ReadingSettings(**settings)
    module = _load(model, ckpt, weights_only)
    # Of a module that is not ours, it may not be λ.
    is_ours = knows_weights(path_of(module, layers, told.effective_depth))
    decay = getattr(module, "weight_decay", None) if is_ours else None
    of_batch: Any = located(cost) if cost else getattr(module, "cost", None)
    if cost and not callable(of_batch):
        raise ValueError(f"`cost` must be a function's path, as torch.nn.functional.mse_loss, got {cost!r}.")
    folder = _folder(output)
    report = report_on(
        module,
        watched(_loader(data, split), max_batches),
        title=f"{name_of(module)}, {Path(ckpt).name}",
        facts={"checkpoint": ckpt, "data": f"{type(data).__name__}, {split}"},
        removal_batches=removal_batches,
        layers=layers,
        **vars(told) | ({"cost": of_batch, "weight_decay": told.weight_decay or decay} if callable(of_batch) else {}),
    )
    (folder / "report.json").write_text(as_json(report), encoding="utf-8")
    (folder / "index.html").write_text(as_html(report), encoding="utf-8")
    _say(*content_of(report)["diagnosis"], f"Report: {folder / 'index.html'}")


def _load(model: type[LightningModule], ckpt: str, weights_only: bool | None) -> LightningModule:
    try:
        return model.load_from_checkpoint(ckpt, map_location="cpu", weights_only=weights_only)
    except Exception as error:
        if _is_of_user(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0].strip(": ")
        said = f"`ckpt` must be a checkpoint of a `model` {model.__name__}, got {ckpt!r}: {reason}."
        if not isinstance(error, OSError):
            said += " Name the class with --model; it calls `save_hyperparameters()` in its __init__."
        raise ValueError(said) from None


def _folder(output: str) -> Path:
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.html").touch()
    except OSError as error:
        raise ValueError(f"`output` must be a folder to write to, got {output!r}: {error}.") from None
    return folder


def _loader(data: LightningDataModule, split: str) -> Iterable[Any]:
    data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    loader: Iterable[Any] = getattr(data, f"{split}_dataloader")()
    if not isinstance(loader, Iterable) or isinstance(loader, (list, tuple, dict)):
        raise ValueError(f"`data` must give one loader of {split} batches, got {type(loader).__name__}.")
    return loader


def _compare(runs: list[str], output: str) -> None:
    read, page = [read_run(run) for run in runs], _folder(output) / "index.html"
    page.write_text(compare(read), encoding="utf-8")
    rows = [["", *(run.name for run in read)], *table_of(read)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    _say(*("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows))
    for run in read:
        if run.report is not None:
            _say("", f"{run.name}:", *run.report["diagnosis"])
    _say(f"Page: {page}")


def drop_blocks(
    ckpt: str,
    layers: list[str],
    data: LightningDataModule,
    model: type[LightningModule],
    output: str = "smaller.ckpt",
    weights_only: bool | None = None,
) -> None:
    """Write a checkpoint without some blocks, and print what that bought.

    Args:
        ckpt: Checkpoint of a LightningModule.
        layers: Names or patterns of blocks to drop, as of `drop_layers`.
        data: Data module, by class path; a validation batch checks the model.
        model: Class of the LightningModule, with ``save_hyperparameters``.
        output: Checkpoint to write, without optimizer state.
        weights_only: As of ``torch.load``; ``False`` for a trusted checkpoint with objects in it.
    """
    module = _load(model, ckpt, weights_only)
    batch = next(iter(_loader(data, "val")))
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before, metrics = expense_of(module, batch), _metrics(trainer, module, data)
    drop_layers(module, layers, batch)
    after, new = expense_of(module, batch), _metrics(trainer, module, data)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(output)
    _say(*bought(before, after, metrics, new), f"Checkpoint: {output}")


def _metrics(trainer: Trainer, module: LightningModule, data: LightningDataModule) -> dict[str, float]:
    is_there = is_overridden("validation_step", module)
    found = trainer.validate(module, datamodule=data, verbose=False) if is_there else []
    return {key: value for one in found for key, value in one.items()}


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


_CKPT: dict[str, Any] = {"ckpt": {"type": str, "help": "Checkpoint of a LightningModule."}}
_COMMANDS: dict[str, tuple[Callable[..., None], str, dict[str, Any]]] = {
    "report": (write_report, "Write a report on a trained model: one page of HTML, and the numbers as JSON.", _CKPT),
    "compare": (
        _compare,
        "Lay runs side by side on one page of HTML.",
        {
            "runs": {"nargs": "+", "help": "Folders with logs of TensorBoard or CSV, or JSON of reports."},
            "--output": {"default": "comparison", "help": "Folder for index.html, made if missing."},
        },
    ),
    "drop": (
        drop_blocks,
        "Take blocks out of a trained model, and say what it bought.",
        _CKPT | {"--layers": {"nargs": "+", "required": True, "help": "Names or patterns of blocks."}},
    ),
}
