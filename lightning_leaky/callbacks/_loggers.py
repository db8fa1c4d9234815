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


def log_histogram(trainer: Trainer, key: str, values: Tensor, step: int) -> None:
    """Hand a histogram to TensorBoard."""
    for _, logger in _loggers(trainer, ["TensorBoardLogger"]):
        logger.experiment.add_histogram(key, values, step)


def log_layout(trainer: Trainer, layout: Mapping[str, Mapping[str, list[Any]]]) -> None:
    """Hand a layout of charts to TensorBoard."""
    for _, logger in _loggers(trainer, ["TensorBoardLogger"]):
        logger.experiment.add_custom_scalars(layout)


def announce_final(trainer: Trainer, keys: Collection[str]) -> None:
    """Tell TensorBoard's table of runs, before Lightning writes it, which final numbers there will be.

    The first list of metrics that a run writes is the one that counts. Lightning's own, of one ``hp_metric``, says
    nothing; where a logger was made without it somebody has plans for that list, and it is left to them.
    """
    sources: list[Any] = [getattr(trainer, "datamodule", None), trainer.lightning_module]
    # Private flags, as that of the logger below: without them everybody is taken to want the table.
    logged = [dict(source.hparams) for source in sources if getattr(source, "_log_hyperparams", bool(source))]
    plain = _plain({name: value for part in logged for name, value in part.items()})
    for _, logger in _loggers(trainer, ["TensorBoardLogger"]):
        if getattr(logger, "_default_hp_metric", True):
            from torch.utils.tensorboard.summary import hparams

            writer = logger.experiment.file_writer
            if writer is None:  # closed by a fit before: its list is the one that counts
                continue
            for summary in hparams(plain, dict.fromkeys(keys, 0.0)):  # type: ignore[no-untyped-call]
                writer.add_summary(summary)


def _plain(values: Mapping[Any, Any], start: str = "") -> dict[str, Any]:
    """Hyper-parameters as TensorBoard takes them: without nesting, and numbers, booleans or text only."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _plain(value, f"{start}{name}/")
        elif not str(name).startswith("_"):  # what LightningCLI keeps for itself
            found[f"{start}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found


def log_final(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Write the final numbers that TensorBoard's table of runs shows beside the hyper-parameters."""
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
