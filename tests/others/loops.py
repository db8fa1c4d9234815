"""What other people's loops share: blocks, a fit, and right values from what a test captures itself."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor
from lightning_leaky.callbacks import _readers
from lightning_leaky.functional import kinetic_energy, objective_weight_decay
from tests.blocks import Block, effective_dimension, linear

WIDTH, DECAY = 6, 0.02
ENERGIES = ("cost_of_identity", "kinetic_energy")
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Loop(LightningModule):
    """Three blocks. The rate is 0: what has passed can be computed again after the fit."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = blocks() if net is None else net

    def forward(self, batch: Any) -> Tensor:
        return self.net(batch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return sgd(self)


class ByHand(Loop):
    """One that optimizes by hand."""

    automatic_optimization = False


def blocks(num_layers: int = 3, width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(*(Block(width) for _ in range(num_layers)))


def sgd(*modules: nn.Module, lr: float = 0.0, weight_decay: float = DECAY) -> torch.optim.Optimizer:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.optim.SGD(parameters, lr, weight_decay=weight_decay)


def points(number: int = 12, width: int = WIDTH, seed: int = 1) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed))


def fit(module: LightningModule, batches: Iterable[Any], *callbacks: Callback, **settings: Any) -> list[str]:
    """Fit on batches as they are, and return what was warned of."""
    validation = settings.pop("validation", None)
    settings = {"max_epochs": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1} | QUIET | settings
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader(batches), None if validation is None else loader(validation))
    return [str(one.message) for one in caught]


def loader(batches: Iterable[Any]) -> DataLoader:
    return DataLoader(list(batches), batch_size=None)


def read(
    module: LightningModule, batches: Iterable[Any], layers: Any, quantities: Sequence[str] = ENERGIES, **settings: Any
):
    """Return the last training reading of a fit, and what was warned of."""
    monitor = EnergyMonitor(layers, list(quantities), every_n_steps=1, **settings)
    said = fit(module, batches, monitor)
    assert "train" in monitor.readings, said
    return monitor.readings["train"], said


def unless_refused(run: Callable[[], Any], word: str) -> Any:
    """Return what something returns; ``None`` where it is refused by an error that holds a word."""
    try:
        return run()
    except ValueError as error:
        if word not in str(error):
            raise
    return None


def set_steps(model: nn.Module, step_sizes: Sequence[float]) -> None:
    """Give a leaky model other step-sizes."""
    model.leaky_steps.step_sizes.copy_(torch.tensor(step_sizes))


@contextmanager
def informed() -> Iterator[list[str]]:
    """Hear what a monitor logs for information, whatever has become of the loggers in this process."""
    heard: list[str] = []
    with mock.patch.object(_readers, "rank_zero_info", heard.append):
        yield heard


def told(said: Iterable[str], *parts: str) -> list[str]:
    """What was said that holds all of some words, in any case."""
    return [text for text in said if all(part.lower() in text.lower() for part in parts)]


def close(got: Any, want: Any, rtol: float = 1e-4) -> None:
    """Compare in float64, and show both."""
    got, want = (torch.as_tensor(one).detach().double() for one in (got, want))
    same = got.shape == want.shape and torch.allclose(got, want, rtol=rtol, atol=0)
    assert same, f"read {got.tolist()}, right {want.tolist()}"


class Passed:
    """What some blocks take and return while something runs, pass by pass, by hooks that know nothing of ours."""

    def __init__(self, layers: Iterable[nn.Module], run: Callable[[], Any], copies: bool = False) -> None:
        self.before: list[list[Tensor]] = []
        self.after: list[list[Tensor]] = []
        handles = [self._watch(layer, copies) for layer in layers]
        self.result = run()
        for handle in handles:
            handle.remove()

    def _watch(self, layer: nn.Module, copies: bool) -> Any:
        before, after = [], []
        self.before.append(before)
        self.after.append(after)

        def keep(module, args, kwargs, output):
            first = output if isinstance(output, Tensor) else output[0]
            before.append([*args, *kwargs.values()][0])
            after.append(first.detach().clone() if copies else first)

        return layer.register_forward_hook(keep, with_kwargs=True)

    def momenta(self, loss: Tensor | None = None, weight_decay: float = DECAY) -> Tensor:
        """‖∂C/∂A_l‖ / λ over all passes."""
        loss = self.result if loss is None else loss
        number = len(self.after)
        squares = []
        for passes in self.after:
            found = torch.autograd.grad(loss, passes, retain_graph=True, allow_unused=True)
            squares.append(sum(one.double().square().sum() for one in found if one is not None))
        return torch.stack(squares).sqrt() / objective_weight_decay(weight_decay, number, 0.0)

    def energies(self, rows: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Those of all passes, their rows one below the other."""
        rows = (lambda hidden: hidden.reshape(-1, hidden.shape[-1])) if rows is None else rows
        befores = [torch.cat([rows(one.detach().double()) for one in passes]) for passes in self.before]
        afters = [torch.cat([rows(one.detach().double()) for one in passes]) for passes in self.after]
        return energies(befores, afters)


def energies(befores: Sequence[Tensor], afters: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of matrices with samples in rows, at L̃ = 0 and equal steps."""
    number = len(befores)
    moved = [(after - before) * number for before, after in zip(befores, afters, strict=True)]
    return {
        "cost_of_identity": torch.stack([effective_dimension(before) for before in befores]),
        "kinetic_energy": torch.stack(
            [
                kinetic_energy(before, step, 0.0, features=linear(before))
                for before, step in zip(befores, moved, strict=True)
            ]
        ),
    }


def close_to(readings: Any, expected: dict[str, Tensor], rtol: float = 1e-4) -> None:
    """Compare several quantities."""
    for key, values in expected.items():
        close(readings[key], values, rtol)


def right_or_refused(monitor: EnergyMonitor, said: Sequence[str], expected: dict[str, Tensor], *words: str) -> None:
    """A reading is right; where there is none, a warning says why."""
    if "train" in monitor.readings:
        close_to(monitor.readings["train"], expected)
    else:
        assert told(said, *words), said
