"""How each logger takes what is no number: figures, pages of text, histograms, a layout of charts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_leaky.callbacks._trainer import class_names
from lightning_leaky.plotting import pixels


def log_figure(trainer: Trainer, key: str, figure: Any, step: int) -> None:
    """Hand a matplotlib figure to every logger that shows pictures: TensorBoard, Weights & Biases, MLflow."""
    image: Tensor | None = None
    for kind, logger in _loggers(trainer):
        if kind == "MLFlowLogger":
            logger.experiment.log_figure(logger.run_id, figure, f"{key}/step_{step:08d}.png")
            continue
        image = pixels(figure) if image is None else image
        if kind == "TensorBoardLogger":
            logger.experiment.add_image(key, image, step, dataformats="HWC")
        else:
            logger.log_image(key, [image.numpy()], step)


def log_text(trainer: Trainer, key: str, text: str, step: int = 0) -> None:
    """Hand a page of Markdown to every logger that keeps text: TensorBoard, MLflow."""
    for kind, logger in _loggers(trainer):
        if kind == "TensorBoardLogger":
            logger.experiment.add_text(key, text, step)
        elif kind == "MLFlowLogger":
            logger.experiment.log_text(logger.run_id, text, f"{key}/step_{step:08d}.md")


def tell_tensorboard(trainer: Trainer, method: str, *news: object) -> None:
    """Call a method of TensorBoard's writers, as ``add_histogram``."""
    for _, logger in _loggers(trainer, ["TensorBoardLogger"]):
        getattr(logger.experiment, method)(*news)


def announce_final(trainer: Trainer, keys: Collection[str]) -> None:
    """Tell TensorBoard's table of runs which final numbers there will be, before Lightning does: the first list counts.

    Where a logger was made without Lightning's own ``hp_metric``, somebody else will write that list.
    """
    sources: list[Any] = [getattr(trainer, "datamodule", None), trainer.lightning_module]
    # Private flags, as `_default_hp_metric` below: without them everybody is taken to want the table.
    logged = [dict(source.hparams) for source in sources if getattr(source, "_log_hyperparams", bool(source))]
    plain = _plain({name: value for part in logged for name, value in part.items()})
    for _, logger in _loggers(trainer, ["TensorBoardLogger"]):
        writer = logger.experiment.file_writer if getattr(logger, "_default_hp_metric", True) else None
        if writer is not None:  # else closed by a fit before, whose list counts
            from torch.utils.tensorboard.summary import hparams

            for summary in hparams(plain, dict.fromkeys(keys, 0.0)):  # type: ignore[no-untyped-call]
                writer.add_summary(summary)


def _plain(values: Mapping[Any, Any], start: str = "") -> dict[str, Any]:
    """Hyper-parameters as TensorBoard takes them: not nested; numbers, booleans or text."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _plain(value, f"{start}{name}/")
        elif not str(name).startswith("_"):  # what LightningCLI keeps for itself
            found[f"{start}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found


def log_final(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Write the final numbers of TensorBoard's table of runs."""
    for _, logger in _loggers(trainer, ["TensorBoardLogger"]):
        logger.log_metrics(dict(metrics), step)


def shows_pictures(trainer: Trainer) -> bool:
    """Whether this process has a logger to show pictures to."""
    return any(True for _ in _loggers(trainer))


def _loggers(
    trainer: Trainer, kinds: Sequence[str] = ("TensorBoardLogger", "WandbLogger", "MLFlowLogger")
) -> Iterator[tuple[str, Any]]:
    """Loggers of some kinds, on the first process."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        names = class_names(logger)  # by class: the stand-in of a disabled logger answers to any name
        yield from ((kind, logger) for kind in kinds if kind in names)
