"""How loggers take figures, text and charts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_leaky.callbacks._trainer import class_names
from lightning_leaky.plotting import pixels


def log_figure(trainer: Trainer, key: str, figure: Any, step: int) -> None:
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
    """Log Markdown."""
    for kind, logger in _loggers(trainer):
        if kind == "TensorBoardLogger":
            logger.experiment.add_text(key, text, step)
        elif kind == "MLFlowLogger":
            logger.experiment.log_text(logger.run_id, text, f"{key}/step_{step:08d}.md")


def tell_tensorboard(trainer: Trainer, method: str, *news: object) -> None:
    """Call a method of TensorBoard's writers."""
    for _, logger in _loggers(trainer, ["TensorBoardLogger"]):
        getattr(logger.experiment, method)(*news)


def announce_final(trainer: Trainer, keys: Collection[str]) -> None:
    """Announce final numbers to TensorBoard's table before Lightning, because the first list counts.

    If a logger lacks Lightning's ``hp_metric``, others write that list.
    """
    sources: list[Any] = [getattr(trainer, "datamodule", None), trainer.lightning_module]
    # Private flags, as `_default_hp_metric` below; without them the table is made.
    logged = [dict(source.hparams) for source in sources if getattr(source, "_log_hyperparams", bool(source))]
    plain = _plain({name: value for part in logged for name, value in part.items()})
    for _, logger in _loggers(trainer, ["TensorBoardLogger"]):
        writer = logger.experiment.file_writer if getattr(logger, "_default_hp_metric", True) else None
        if writer is not None:  # else an earlier fit closed it
            from torch.utils.tensorboard.summary import hparams

            for summary in hparams(plain, dict.fromkeys(keys, 0.0)):  # type: ignore[no-untyped-call]
                writer.add_summary(summary)


def _plain(values: Mapping[Any, Any], start: str = "") -> dict[str, Any]:
    """Flatten hyper-parameters, as TensorBoard needs."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _plain(value, f"{start}{name}/")
        elif not str(name).startswith("_"):  # LightningCLI's own
            found[f"{start}{name}"] = value if isinstance(value, (int, float, str)) else str(value)
    return found


def log_final(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    for _, logger in _loggers(trainer, ["TensorBoardLogger"]):
        logger.log_metrics(dict(metrics), step)


def shows_pictures(trainer: Trainer) -> bool:
    return any(True for _ in _loggers(trainer))


def _loggers(
    trainer: Trainer, kinds: Sequence[str] = ("TensorBoardLogger", "WandbLogger", "MLFlowLogger")
) -> Iterator[tuple[str, Any]]:
    """Loggers by kind, on the first process."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        names = class_names(logger)  # a disabled logger answers to any attribute
        yield from ((kind, logger) for kind in kinds if kind in names)
