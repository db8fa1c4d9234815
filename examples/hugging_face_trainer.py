"""The Hugging Face Trainer with readings of every block among its logs, by a callback of twenty lines.

    python examples/hugging_face_trainer.py

A small BERT of random weights learns whether a padded sentence has more of the second half of the vocabulary. Nothing
is downloaded. Copy `PathCallback` into a script of yours.
"""

# ruff: noqa: D102 (the methods of the callback are the trainer's)

import tempfile
from argparse import ArgumentParser
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from lightning_leaky import PathMonitor, Readings


class PathCallback(TrainerCallback):
    """Puts readings of a model's blocks, which it finds, into a trainer's logs."""

    def __init__(self, trainer: Trainer, **settings: Any) -> None:
        self.trainer, self.settings = trainer, settings
        self.readings: Readings | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **run: Any) -> None:
        self.monitor = PathMonitor(run["model"], optimizer=run["optimizer"], **self.settings)
        self.monitor.num_steps = state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **run: Any) -> None:
        self.monitor.arm()  # momenta of accumulated losses need `gradient_scale`, which the model decides

    on_substep_end = on_step_begin  # before the next micro-batch

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **run: Any) -> None:
        self.readings = self.monitor.read()

    def on_step_end(self, args: Any, state: Any, control: Any, **run: Any) -> None:
        if self.readings is not None:
            should_log = control.should_log  # of the loss, which the trainer logs next; `log` unsets it
            self.trainer.log({key: value.item() for key, value in self.readings.scalars().items()})
            control.should_log = should_log

    def on_train_end(self, args: Any, state: Any, control: Any, **run: Any) -> None:
        self.monitor.detach()


def sentences(number: int, length: int = 12, vocabulary: int = 40) -> list[dict[str, Tensor]]:
    """Random tokens, with padding from a random place on, and their labels."""
    tokens = torch.randint(1, vocabulary, (number, length))
    real = torch.arange(length) < torch.randint(3, length + 1, (number, 1))
    labels = (((tokens > vocabulary / 2) & real).sum(-1) > real.sum(-1) / 2).long()
    columns = {"input_ids": tokens * real, "attention_mask": real.long(), "labels": labels}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def main(max_steps: int) -> PathCallback:
    """Train, and return the callback with its last readings."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, max_steps=max_steps, learning_rate=1e-3, logging_steps=20, use_cpu=True)
        trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=sentences(1000))
        callback = PathCallback(trainer, every_n_steps=20)
        trainer.add_callback(callback)
        trainer.train()
    return callback


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=100)
    last = main(**vars(parser.parse_args())).monitor.readings
    print("No step was read." if last is None else last.table())
