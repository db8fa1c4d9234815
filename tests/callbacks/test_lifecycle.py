"""Every callback through every loop of Lightning: it leaves nothing behind, is not felt, and logs where the loss is.

`LOOPS` says how each loop differs from a plain fit of a small residual network that knows nothing of this package; the
tests below are the promises that hold in all of them.
"""

import copy
import logging
import pickle
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_leaky import EnergyMonitor, StepSizeAdapter, make_leaky
from tests.callbacks.helpers import rows_of, steps_with

# The network: it draws from the global generator, so that a callback which does so too changes the losses.


class Block(nn.Module):
    """A residual block with dropout."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.dropout = nn.Linear(6, 8), nn.Linear(8, 6), nn.Dropout(0.2)

    def forward(self, hidden):
        return hidden + self.dropout(self.outer(torch.relu(self.inner(hidden))))


class Body(nn.Module):
    """Three of them, run again inside the backward pass where they are checkpointed."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.use_reentrant = None

    def forward(self, hidden):
        for block in self.blocks:
            if self.use_reentrant is None:
                hidden = block(hidden)
            else:
                hidden = checkpoint(block, hidden, use_reentrant=self.use_reentrant)
        return hidden


class Steps:
    """The network and its steps, for the LightningModule of either package."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6))
        self.body = Body()
        self.head = nn.Linear(6, 2)
        self.lr, self.batch_size = 0.05, 8

    def forward(self, inputs):
        return self.head(self.body(self.embed(inputs + 0.1 * torch.randn_like(inputs))))

    def loss(self, batch):
        inputs, targets = batch
        return (self(inputs) - targets).square().mean()

    def logged_loss(self, batch, stage):
        loss = self.loss(batch)
        self.log(f"{stage}loss", loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self.logged_loss(batch, "")

    def validation_step(self, batch, batch_idx):
        return self.logged_loss(batch, "val_")

    def test_step(self, batch, batch_idx):
        return self.logged_loss(batch, "test_")

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def data(self, size):
        inputs = torch.randn(size, 3, generator=torch.Generator().manual_seed(size))
        return DataLoader(TensorDataset(inputs, inputs[:, :2].cos()), batch_size=self.batch_size)

    def train_dataloader(self):
        return self.data(24)

    def val_dataloader(self):
        return self.data(10)

    test_dataloader = predict_dataloader = val_dataloader


class Residual(Steps, LightningModule):
    """Of ``lightning.pytorch``."""


class OtherName(Steps, pytorch_lightning.LightningModule):
    """Of ``pytorch_lightning``."""


class Manual(Residual):
    """One optimizer, stepped by hand."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.trainer.strategy._lightning_optimizers:
            optimizer.zero_grad()
            loss = self.logged_loss(batch, "")
            self.manual_backward(loss)
            optimizer.step()
        return loss


class TwoOptimizers(Manual):
    """Like a GAN: a forward pass and a step of the body, then of the head."""

    def configure_optimizers(self):
        body = [*self.embed.parameters(), *self.body.parameters()]
        return [torch.optim.SGD(body, lr=self.lr), torch.optim.Adam(self.head.parameters(), lr=self.lr)]


class Lbfgs(Residual):
    """Runs several forward passes in one step."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Silent(Residual):
    """Does not log: `self.log` cannot be compiled."""

    def logged_loss(self, batch, stage):
        return self.loss(batch)


class BrokenError(RuntimeError):
    """Raised on purpose."""


class Breaking(Callback):
    """Raises in one hook once three steps have been taken."""

    def __init__(self, hook: str, error: type[BaseException] = BrokenError):
        def fail(self, trainer, *args, **kwargs):
            if trainer.global_step > 3:
                raise error

        setattr(self, hook, MethodType(fail, self))


class BreaksInTraining(Residual):
    """Raises between forward and backward."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.global_step > 3:
            raise BrokenError
        return loss


class BreaksInValidation(Residual):
    """Raises in the first validation."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        raise BrokenError


def rate_finder(cls=LearningRateFinder):
    """As few trials as give a suggestion."""
    return cls(num_training_steps=14, early_stop_threshold=None)


class FineTuner(LearningRateFinder):
    """Looks for a rate at the start of an epoch, with hooks in place: a recipe of Lightning's documentation."""

    def on_fit_start(self, *args, **kwargs):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            self.lr_find(trainer, pl_module)


class Copier(Callback):
    """Copies callbacks and module where most is going on, by deepcopy and by pickle."""

    def __init__(self):
        self.copies = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        ours = [one for one in trainer.callbacks if isinstance(one, (EnergyMonitor, StepSizeAdapter))]
        self.copies += [copy.deepcopy([pl_module, *ours]), pickle.loads(pickle.dumps([pl_module, *ours]))]


# The loops.


def fit(trainer, module):
    trainer.fit(module)


def fit_twice(trainer, module):
    trainer.fit(module)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module)


def fit_and_test(trainer, module):
    trainer.fit(module)
    trainer.test(module, verbose=False)


def fit_compiled(trainer, module):
    trainer.fit(torch.compile(module, backend="eager"))


def leave(module):
    """Leave a module as it is."""


def checkpoint_blocks(use_reentrant):
    def prepare(module):
        module.body.use_reentrant = use_reentrant

    return prepare


def parametrize(change):
    """Have a parametrization compute some weights at every look; spectral norm iterates at each in training."""

    def prepare(module):
        for block in module.body.blocks:
            change(block.outer)

    return prepare


def make_lazy(module):
    """Leave some weights to be made in the first forward pass."""
    for block in module.body.blocks:
        block.outer = nn.LazyLinear(6)


@dataclass(frozen=True)
class Loop:
    """How a run differs from a plain fit. Trainer settings are made anew for each run: plugins keep state."""

    module: type[Steps] = Residual
    prepare: Callable[[LightningModule], None] = leave
    settings: Callable[[], dict[str, Any]] = dict
    run: Callable[[Trainer, LightningModule], Any] = fit
    reads: tuple[str, ...] = ("train", "validate")
    steps: int = 6  # of the optimizer that a StepSizeAdapter follows, in the last fit
    raises: type[BaseException] | None = None
    unlogged_losses: int = 0  # of steps that ended before Lightning came to log their loss
    adapter: dict[str, Any] = field(default_factory=dict)
    quantities: tuple[str, ...] = ("cost_of_identity", "kinetic_energy", "speed", "stable_rank", "hamiltonian")


def with_settings(run=fit, reads=("train", "validate"), steps=6, **settings) -> Loop:
    return Loop(settings=lambda: settings, run=run, reads=reads, steps=steps)


def with_callback(make, **changes) -> Loop:
    return Loop(settings=lambda: {"callbacks": [make()]}, **changes)


def scaled():
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}


LOOPS = {
    "32-true": Loop(),
    "64-true": with_settings(precision="64-true"),
    "bf16-mixed": with_settings(precision="bf16-mixed"),
    "16-mixed": Loop(settings=scaled, steps=5),  # the first one overflows
    "compiled module": Loop(
        Silent,
        run=fit_compiled,
        settings=lambda: {"limit_val_batches": 0},
        reads=("train",),
        quantities=("cost_of_identity",),
    ),
    "checkpointing": Loop(prepare=checkpoint_blocks(use_reentrant=False)),
    "reentrant checkpointing": Loop(prepare=checkpoint_blocks(use_reentrant=True)),
    "spectral norm": Loop(prepare=parametrize(parametrizations.spectral_norm)),
    "weight norm": Loop(prepare=parametrize(parametrizations.weight_norm)),
    "orthogonal maps": Loop(prepare=parametrize(parametrizations.orthogonal)),
    "lazy layers": Loop(prepare=make_lazy),
    "accumulation": with_settings(accumulate_grad_batches=2, steps=4),
    "clipping by norm": with_settings(gradient_clip_val=0.1),
    "clipping by value": with_settings(gradient_clip_val=0.01, gradient_clip_algorithm="value"),
    "manual optimization": Loop(Manual),
    "two optimizers": Loop(TwoOptimizers, adapter={"optimizer_index": 0}),
    "LBFGS": Loop(Lbfgs),
    "WeightAveraging": with_callback(lambda: WeightAveraging(use_buffers=False)),
    "WeightAveraging of buffers": with_callback(WeightAveraging),
    "EMAWeightAveraging": with_callback(lambda: EMAWeightAveraging(decay=0.9, use_buffers=False)),
    "StochasticWeightAveraging": with_callback(
        lambda: StochasticWeightAveraging(0.05, swa_epoch_start=1), steps=7
    ),  # Lightning counts the pass that renews batch norms as one
    "LearningRateFinder": Loop(settings=lambda: {"callbacks": [rate_finder()], "max_epochs": 5}, steps=15),
    "LearningRateFinder in an epoch": Loop(
        settings=lambda: {"callbacks": [rate_finder(FineTuner)], "max_epochs": 5}, steps=15
    ),
    "BatchSizeFinder": with_callback(lambda: BatchSizeFinder(max_trials=1, init_val=4, steps_per_trial=2), steps=12),
    "sanity check": with_settings(num_sanity_val_steps=2),
    "fast_dev_run": with_settings(fast_dev_run=True, log_every_n_steps=1, steps=1),
    "no logger": with_settings(logger=False),
    "limit_train_batches": with_settings(limit_train_batches=2, steps=4),
    "no training batches": with_settings(limit_train_batches=0, reads=(), steps=0),
    "limit_val_batches": with_settings(limit_val_batches=1),
    "no validation batches": with_settings(limit_val_batches=0, reads=("train",)),
    "limit_test_batches": Loop(
        settings=lambda: {"limit_test_batches": 1}, run=fit_and_test, reads=("train", "validate", "test")
    ),
    "no test batches": with_settings(limit_test_batches=0, run=fit_and_test),
    "validation inside the epoch": with_settings(val_check_interval=2),
    "validate": Loop(run=lambda trainer, module: trainer.validate(module, verbose=False), reads=("validate",), steps=0),
    "test": Loop(run=lambda trainer, module: trainer.test(module, verbose=False), reads=("test",), steps=0),
    "predict": Loop(run=lambda trainer, module: trainer.predict(module), reads=(), steps=0),
    "two fits": Loop(run=fit_twice),
    "break in training": Loop(BreaksInTraining, raises=BrokenError, steps=4),
    "break in validation": Loop(BreaksInValidation, raises=BrokenError, reads=("train",), steps=3),
    "break in a callback": with_callback(
        lambda: Breaking("on_train_batch_end"), raises=BrokenError, steps=4, unlogged_losses=1
    ),
    "break in a trial": Loop(
        BreaksInTraining,
        settings=lambda: {"callbacks": [rate_finder()], "max_epochs": 5},
        reads=(),
        steps=0,
        raises=BrokenError,
    ),
    "break before the step": with_callback(lambda: Breaking("on_before_optimizer_step"), raises=BrokenError, steps=4),
    "interrupt": with_callback(lambda: Breaking("on_after_backward", KeyboardInterrupt), raises=SystemExit, steps=4),
    "copies": with_callback(Copier),
    "pytorch_lightning": Loop(OtherName),
}


# One run.


class Ear(Callback):
    """Keeps what every step returned, and the optimizers."""

    def __init__(self):
        self.heard, self.optimizers = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, *args, **kwargs):
        self.optimizers += trainer.optimizers
        self.heard.append(outputs["loss"].detach().clone())

    def on_validation_batch_end(self, trainer, pl_module, outputs, *args, **kwargs):
        self.heard.append(outputs.detach().clone())

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end


@dataclass
class Run:
    """What can be seen after a run."""

    module: LightningModule
    trainer: Trainer
    callbacks: list[Callback]
    heard: list[torch.Tensor]
    random_state: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())


@pytest.fixture
def play(make_trainer, hooks_of, tmp_path, monkeypatch):
    """Runs a loop with callbacks, on a leaky network if there is an adapter, and checks that no hook is left."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # slow while pytest captures logs

    def play(loop: Loop, *makers: Callable[[Loop], Callback]) -> Run:
        package = lightning.pytorch
        if loop.module is OtherName:
            package = pytorch_lightning
            monkeypatch.setattr("tests.conftest.Trainer", package.Trainer)
        torch._dynamo.reset()
        torch.manual_seed(0)
        module, callbacks, ear = loop.module(), [make(loop) for make in makers], Ear()
        loop.prepare(module)
        if adapter in makers:
            make_leaky(module, "body.blocks.*")
        settings = {"logger": package.loggers.CSVLogger(tmp_path), "log_every_n_steps": 2} | loop.settings()
        trainer = make_trainer(*callbacks, *settings.pop("callbacks", ()), ear, **settings)
        lazy = sum(isinstance(one, LazyModuleMixin) for one in module.modules())  # each has a hook until it is made
        hooks_before, handler = hooks_of(module) - lazy, signal.getsignal(signal.SIGINT)
        if loop.raises is None:
            loop.run(trainer, module)
        else:
            with pytest.raises(loop.raises):
                loop.run(trainer, module)
        signal.signal(signal.SIGINT, handler)  # once interrupted, Lightning ignores every further interrupt
        assert hooks_of(module) == hooks_before
        assert bool(hooks_before) == (adapter in makers)  # the leaky steps' own
        assert not any(optimizer._optimizer_step_post_hooks for optimizer in ear.optimizers + trainer.optimizers)
        return Run(module, trainer, callbacks, ear.heard, torch.get_rng_state())

    return play


def named(loop):
    return EnergyMonitor("body.blocks.*", loop.quantities, weight_decay=0.1)


def found(loop):
    return EnergyMonitor(quantities=loop.quantities, weight_decay=0.1)


def adapter(loop):
    return StepSizeAdapter(every_n_steps=2, damping=0.5, **loop.adapter)


SLOW = ("compiled module", "BatchSizeFinder")
every_loop = pytest.mark.parametrize(
    "loop", [pytest.param(loop, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, loop in LOOPS.items()]
)


def steps_logged(logger, key) -> list[int]:
    """Where a logger has a key."""
    if isinstance(logger, TensorBoardLogger):
        events = EventAccumulator(logger.log_dir).Reload()
        return [event.step for event in events.Scalars(key)] if key in events.Tags()["scalars"] else []
    return steps_with(rows_of(logger.log_dir), key) if (Path(logger.log_dir) / "metrics.csv").exists() else []


def assert_logged_with_the_loss(
    run: Run, reads: Collection[str], key: str, stages=("train", "validate", "test"), unlogged_losses: int = 0
):
    """The steps of a key are those of the loss, in every stage that is read; `fast_dev_run` logs nothing."""
    for logger in run.trainer.loggers:
        for stage in stages if getattr(logger, "log_dir", None) else ():
            prefix = {"train": "", "validate": "val_", "test": "test_"}[stage]
            steps = steps_logged(logger, f"{prefix}{key}")
            assert bool(steps) == (stage in reads)
            if not isinstance(run.module, Silent):
                unlogged = unlogged_losses if stage == "train" else 0
                assert steps[: len(steps) - unlogged] == steps_logged(logger, f"{prefix}loss")


# The promises.


@every_loop
@pytest.mark.parametrize("makers", [(named,), (found,), (found, adapter)], ids=["named", "found", "with adapter"])
def test_no_loop_feels_the_monitor(play, loop, makers):
    """Losses, weights, step-sizes and random state are those of a run without it, bit for bit."""
    bare, watched = play(loop, *makers[1:]), play(loop, *makers)
    assert len(watched.heard) == len(bare.heard)
    assert all(map(torch.equal, watched.heard, bare.heard))
    tensors, watched_tensors = bare.tensors(), watched.tensors()
    assert tensors.keys() == watched_tensors.keys()
    assert all(torch.equal(tensor, watched_tensors[name]) for name, tensor in tensors.items())
    assert torch.equal(watched.random_state, bare.random_state)
    readings = watched.callbacks[0].readings
    assert set(readings) == set(loop.reads)
    assert all(one.is_finite() for one in readings.values())
    assert_logged_with_the_loss(watched, loop.reads, "cost_of_identity/layer_01", unlogged_losses=loop.unlogged_losses)


@every_loop
def test_step_sizes_stay_a_distribution(play, loop):
    """They move where steps have been taken and nowhere else; trials and copies are no steps."""
    run = play(loop, adapter)
    rho = run.module.leaky_steps.step_sizes
    assert (rho > 0).all()
    assert float(rho.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(rho, torch.full_like(rho, 1 / 3)) == (loop.steps == 0)
    assert run.callbacks[0].state_dict().get("num_steps", 0) == loop.steps
    assert_logged_with_the_loss(run, loop.reads, "step_size/layer_01", ("train",), loop.unlogged_losses)


def test_every_logger_gets_every_reading(play, tmp_path):
    def settings():
        return {"logger": [CSVLogger(tmp_path, "a"), CSVLogger(tmp_path, "b"), TensorBoardLogger(tmp_path, "c")]}

    run = play(Loop(settings=settings), found, adapter)
    assert [steps_logged(logger, "cost_of_identity/layer_01") for logger in run.trainer.loggers] == 3 * [[1, 3, 5]]
    assert_logged_with_the_loss(run, ("train", "validate"), "cost_of_identity/layer_01")


# Compiled code: every state of the hooks is a guard.


class Watch(Callback):
    """Reads a counter after the first batch, on which a monitor looks for blocks."""

    def __init__(self, counter):
        self.counter, self.count = counter, None

    def on_train_batch_end(self, *args):
        self.count = self.counter.frame_count if self.count is None else self.count


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["module", "child"])
@pytest.mark.parametrize("quantity", ["cost_of_identity", "hamiltonian"])
@pytest.mark.parametrize("layers", ["body.blocks.*", None], ids=["named", "found"])
def test_the_monitor_costs_one_more_graph(play, whole, quantity, layers):
    """One graph for the steps that are read, one for the others, and nothing that breaks a full graph."""
    counter = CompileCounterWithBackend("eager")
    search = Watch(counter)

    def prepare(module):
        if not whole:
            module.body.compile(backend=counter, fullgraph=True)

    def run(trainer, module):
        trainer.fit(torch.compile(module, backend=counter) if whole else module)

    loop = Loop(Silent, prepare, lambda: {"limit_val_batches": 0}, run)
    bare = play(loop)
    assert counter.frame_count == 1
    counter.frame_count = 0
    watched = play(loop, lambda _: EnergyMonitor(layers, [quantity], weight_decay=0.1), lambda _: search)
    assert counter.frame_count - (search.count if layers is None else 0) <= 2
    assert all(map(torch.equal, watched.heard, bare.heard))
    assert watched.callbacks[0].readings["train"].is_finite()


# What two loops do to one another.


@pytest.mark.parametrize("makers", [(named,), (found, adapter)], ids=["named", "with adapter"])
def test_copies_from_the_middle_of_a_fit_can_be_trained(play, make_trainer, hooks_of, makers):
    """Module and callbacks by deepcopy and by pickle: both train alike, and their own fit leaves nothing on them."""
    copier, heard = Copier(), []
    play(with_callback(lambda: copier), *makers)
    assert len(copier.copies) == 12
    for module, *callbacks in copier.copies[-2:]:
        torch.manual_seed(1)
        ear, hooks_before = Ear(), hooks_of(module)
        make_trainer(*callbacks, ear).fit(module)
        assert hooks_of(module) == hooks_before
        assert callbacks[0].readings["train"].is_finite()
        heard.append(torch.stack(ear.heard))
    assert torch.equal(*heard)


def test_hooks_that_a_broken_trial_has_left_are_gone_after_the_next_run(make_trainer, hooks_of):
    """A finder takes the callbacks out of the trainer while it tries rates: nobody tells them when a trial breaks."""
    module, callbacks = make_leaky(BreaksInTraining(), "body.blocks.*"), [found(Loop()), adapter(Loop())]
    hooks_before = hooks_of(module)
    with pytest.raises(BrokenError):
        make_trainer(*callbacks, rate_finder(FineTuner), max_epochs=5).fit(module)
    make_trainer(*callbacks).validate(module, verbose=False)
    assert hooks_of(module) == hooks_before


def test_a_second_fit_that_begins_with_trials_counts_its_own_steps(play, make_trainer):
    """A finder saves and restores the state of every callback before the fit has begun."""
    first = play(Loop(), adapter)
    (step_sizes,) = first.callbacks
    assert step_sizes.state_dict()["num_steps"] == 6
    make_trainer(step_sizes, rate_finder(), max_epochs=5).fit(first.module)
    assert step_sizes.state_dict()["num_steps"] == 15


def test_averaging_of_buffers_is_warned_of_in_either_package(play):
    def settings():
        return {"callbacks": [pytorch_lightning.callbacks.WeightAveraging()]}

    with pytest.warns(UserWarning, match="`use_buffers=False`"):
        play(Loop(OtherName, settings=settings), adapter)
