"""Fits with both callbacks on a device, in every precision: the monitor is not felt, and reads what the CPU reads."""

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor, LeakyResNetModule, Readings, StepSizeAdapter, TeacherDataModule, make_leaky
from lightning_leaky.metrics import QUANTITIES
from tests.callbacks.helpers import ConstantRate, NoisyModule, Recorder
from tests.others.networks import NETWORKS

CPU = torch.device("cpu")

# How far a reading of the first batch may be from that in float64 on the CPU, as a share of the largest of its layers.
# On the CPU the energy Hamiltonian, a difference, is off by 4e-7 in float32, 3e-3 in fp16 and 5e-2 in bf16; the other
# readings by a tenth of it.
TOLERANCES = {"64-true": 1e-9, "32-true": 1e-4, "16-mixed": 1e-2, "bf16-mixed": 1e-1}


class Fit(NamedTuple):
    """What is left after a fit."""

    module: LightningModule
    trainer: Trainer
    monitor: EnergyMonitor
    adapter: StepSizeAdapter
    recorder: Recorder

    @property
    def step_sizes(self):
        return self.module.network.step_sizes

    def states(self) -> list[dict[str, torch.Tensor]]:
        """Weights and step-sizes before each optimizer step, and after the last, when Lightning has moved them home."""
        states = [*self.recorder.states, self.module.state_dict()]
        return [{name: value.cpu() for name, value in state.items()} for state in states]


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Every quantity is within a share of the largest of its layers; an error says how far off each is."""
    assert found.keys() == expected.keys(), f"{sorted(found)} were read"
    off = {name: float((found[name] - wanted).abs().max() / wanted.abs().max()) for name, wanted in expected.items()}
    wrong = {name: f"{share:.1e}" for name, share in off.items() if not share <= tolerance}
    assert not wrong, f"off by {wrong} of the largest layer, allowed is {tolerance}"


def small(cls: type[LeakyResNetModule] = ConstantRate) -> LeakyResNetModule:
    """The same four layers at every call."""
    torch.manual_seed(0)
    return cls(3, 2, width=6, num_layers=4, effective_depth=2.0, weight_decay=0.1)


def teacher() -> TeacherDataModule:
    """24 points to train on in one batch, 10 to validate."""
    return TeacherDataModule(dims=(3, 1, 2), num_train=24, num_val=10, num_test=2, hidden=5)


def trainer_of(device: torch.device, *callbacks: Any, **settings: Any) -> Trainer:
    """A quiet trainer that logs, and so reads, every step."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    return Trainer(accelerator=device.type, callbacks=list(callbacks), **(quiet | {"devices": 1} | settings))


def in_precision(precision: str, device: torch.device, initial_scale: float = 2.0**10) -> dict[str, Any]:
    """Settings of a trainer; the loss of fp16 is scaled so that no step overflows unless it is to."""
    if precision != "16-mixed":
        return {"precision": precision}
    scaler = torch.amp.GradScaler(device.type, init_scale=initial_scale)
    return {"plugins": [MixedPrecision(precision, device.type, scaler)]}


def fit(module: LightningModule, device: torch.device, is_watched: bool = True, **settings: Any) -> Fit:
    """Train with an adapter and, if it is to be watched, a monitor of every quantity."""
    monitor, adapter = EnergyMonitor(quantities=QUANTITIES), StepSizeAdapter(every_n_steps=2, damping=0.5)
    recorder = Recorder(monitor if is_watched else None)
    callbacks = [monitor, adapter, recorder] if is_watched else [adapter, recorder]
    trainer = trainer_of(device, *callbacks, **({"max_epochs": 6} | settings))
    torch.manual_seed(1)
    trainer.fit(module, datamodule=teacher())
    return Fit(module, trainer, monitor, adapter, recorder)


def the_monitor_is_not_felt(device, precision):
    """Losses, weights and step-sizes of a module that draws random numbers, to the last bit."""
    bare, watched = (fit(small(NoisyModule), device, how, **in_precision(precision, device)) for how in (False, True))
    assert {value.device.type for value in watched.recorder.states[-1].values()} == {device.type}
    assert len(watched.recorder.losses) == len(bare.recorder.losses) == 6
    for step, losses in enumerate(zip(bare.recorder.losses, watched.recorder.losses, strict=True)):
        assert torch.equal(*losses), f"losses of step {step + 1} are {losses}"
    for step, states in enumerate(zip(bare.states(), watched.states(), strict=True)):
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name]), f"{name} differs after {step} steps"


def readings_are_those_of_the_cpu(device, precision):
    """Of the first batch, in float64 there; all are finite, on the CPU and in float64, and the step-sizes adapt."""
    expected = fit(small(), CPU, precision="64-true").recorder.readings[0]
    found = fit(small(), device, **in_precision(precision, device))
    readings = [*found.recorder.readings, found.monitor.readings["validate"]]
    assert len(readings) == 7, "not every step was read"
    for one in readings:
        assert one.is_finite(), f"not finite: {one.quantities}"
        assert {(values.device.type, values.dtype) for values in one.quantities.values()} == {("cpu", torch.float64)}
    assert set(readings[0].quantities) == set(QUANTITIES)
    assert_near(readings[0].quantities, expected.quantities, TOLERANCES[precision])
    master = found.adapter.state_dict()["step_sizes"]
    assert abs(float(master.sum()) - 1) < 1e-12, f"step-sizes sum to {master.sum()}"
    assert float((master - 0.25).abs().max()) > 1e-3, "step-sizes did not move"
    torch.testing.assert_close(found.step_sizes.cpu(), master.to(found.step_sizes.dtype), rtol=0, atol=0)


class OfAdam(ConstantRate):
    """Adam of either implementation: the fused one is called by a scaler even where it skips the step."""

    fused = False

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2, fused=self.fused)


class OfFusedAdam(OfAdam):
    fused = True


def skipped_steps_do_not_count(device, optimizer):
    """The first steps of fp16 overflow: they count for nothing, and the first that does not reads the first batch."""
    found = fit(small(optimizer), device, max_epochs=14, **in_precision("16-mixed", device, initial_scale=2.0**22))
    changes = [_changed(before, after) for before, after in pairwise(found.states())]
    real = [step for step, names in enumerate(changes) if any("weight" in name for name in names)]
    assert real, "every step was skipped"
    assert real[0] > 0, "no step was skipped"
    assert not found.recorder.readings[0].is_finite(), "the gradients of a skipped step are finite"
    assert found.adapter.state_dict()["num_steps"] == len(real), f"steps {real} were taken"
    adapted = [step for step, names in enumerate(changes) if "network.step_sizes" in names]
    assert adapted == real[::2], f"adapted in steps {adapted}, of {real} that were taken"
    # The weights are still those of the start, and the scale has been halved: momenta must not feel it.
    expected = fit(small(optimizer), device, max_epochs=1).recorder.readings[0]
    assert_near(found.recorder.readings[real[0]].quantities, expected.quantities, TOLERANCES["16-mixed"])


def _changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def a_resumed_fit_equals_an_uninterrupted_one(device):
    """The adapter's state comes back to the device; the checkpoint is taken between two adaptations."""
    whole = fit(small(), device)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "half.ckpt"
        fit(small(), device, max_epochs=3).trainer.save_checkpoint(file)
        module, adapter = small(), StepSizeAdapter(every_n_steps=2, damping=0.5)
        trainer_of(device, adapter, max_epochs=6).fit(module, datamodule=teacher(), ckpt_path=file, weights_only=True)
    assert adapter.state_dict()["num_steps"] == whole.adapter.state_dict()["num_steps"] == 6
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def a_network_of_others_reads_as_on_the_cpu(device, name):
    """Blocks that are found, with padding and segments; then made leaky, with step-sizes that adapt."""
    for is_leaky in (False, True):
        expected, found = (_read_network_of_others(name, is_leaky, place) for place in (CPU, device))
        assert found.keys() == expected.keys() == {"train", "validate"}, f"of {set(found)} there are readings"
        for stage, readings in expected.items():
            assert found[stage].names == readings.names, f"{found[stage].names} were read"
            assert_near(found[stage].quantities, readings.quantities, 1e-6)
            torch.testing.assert_close(found[stage].step_sizes, readings.step_sizes, rtol=1e-6, atol=0)
        has_moved = not torch.equal(found["train"].step_sizes, found["validate"].step_sizes)
        assert has_moved == is_leaky, "step-sizes move where they adapt, and nowhere else"


def _read_network_of_others(name, is_leaky, device) -> dict[str, Readings]:
    torch.manual_seed(0)
    network = NETWORKS[name]
    module, batches = network.make(), [network.batch(size) for size in (3, 4)]
    callbacks = [EnergyMonitor(layout=network.layout)]
    if is_leaky:
        make_leaky(module, network.layers)
        callbacks.append(StepSizeAdapter(every_n_steps=1, damping=0.5, layout=network.layout))
    trainer = trainer_of(device, *callbacks, max_epochs=1, precision="64-true")
    trainer.fit(module, *(DataLoader(batches, batch_size=None) for _ in range(2)))
    return callbacks[0].readings
