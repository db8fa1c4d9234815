"""Blocks read branch by branch, from the arguments that a user gives to the readings."""

import copy
import itertools
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor, ablate_path, measure_path, sample_path
from lightning_leaky.functional import kinetic_energy
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.settings import ReadingSettings
from tests.blocks import linear
from tests.others.networks import NETWORKS, WIDTH, EncoderTask

NAMES = tuple(f"layers.{block}.{part}" for block in range(3) for part in ("self_attn", "linear1"))
READ = ["kinetic_energy", "relative_distance"]
read = partial(measure_path, layers="layers.*")


def encoder(norm_first=True, **settings):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.0, batch_first=True, norm_first=norm_first, **settings)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return model.double()


def batch(size=4):
    return torch.randn(size, 5, WIDTH, generator=torch.Generator().manual_seed(size)).double()


def states(model, hidden):
    """The states of a pre-norm encoder, by its own functions."""
    found = [hidden]
    for layer in model.layers:
        found.append(found[-1] + layer._sa_block(layer.norm1(found[-1]), None, None))
        found.append(found[-1] + layer._ff_block(layer.norm2(found[-1])))
    return found


def test_readings_are_those_of_the_states():
    model, data = encoder().eval(), [batch(4), batch(3)]
    readings = read(model, data, READ, branches=True)
    assert readings.names == NAMES
    with torch.no_grad():
        rows = [torch.cat(parts).flatten(0, 1) for parts in zip(*(states(model, one) for one in data), strict=True)]
    expected = [
        kinetic_energy(before, (after - before) * 6, 0.0, features=linear(before))
        for before, after in itertools.pairwise(rows)
    ]
    torch.testing.assert_close(readings["kinetic_energy"], torch.stack(expected).double())
    named = read(model, data, READ, branches=["norm1", "norm2"])
    assert named.names[:2] == ("layers.0.norm1", "layers.0.norm2")
    torch.testing.assert_close(named["kinetic_energy"], readings["kinetic_energy"], rtol=0, atol=0)


def test_a_sample_on_its_way_passes_the_states_between():
    model, data = encoder().eval(), batch()
    (sample,) = sample_path(model, data, 1000, layers="layers.*", branches=True)
    with torch.no_grad():
        expected = torch.stack([one.flatten(0, 1) for one in states(model, data)])
    torch.testing.assert_close(torch.as_tensor(sample.representations, dtype=torch.float64), expected)


@pytest.mark.parametrize("branches", [True, ["norm1", "norm2"]])
def test_momenta_are_those_of_the_states(branches):
    model, data = encoder().eval(), batch()
    targets = torch.randn_like(data)
    readings = read(
        model, [(data, targets)], ["momentum_norm"], F.mse_loss, weight_decay=0.1, branches=branches, form="samples"
    )
    whole = read(model, [(data, targets)], ["momentum_norm"], F.mse_loss, weight_decay=0.1, form="samples")
    torch.testing.assert_close(readings["momentum_norm"][1::2], whole["momentum_norm"])
    assert bool(torch.isfinite(readings["momentum_norm"]).all())


@pytest.mark.parametrize("branches", [True, ["norm1", "norm2"]])
def test_what_leaving_out_attention_costs(branches):
    model, data = encoder().eval(), batch()
    targets = torch.randn_like(data)
    found = ablate_path(model, [(data, targets)], F.mse_loss, "layers.*", order=[2, 1], branches=branches)
    assert len(found.names) == 6
    expected = []
    for removed in range(6):
        hidden = data
        for index, layer in enumerate(model.layers):
            if removed != 2 * index:
                hidden = hidden + layer._sa_block(layer.norm1(hidden), None, None)
            if removed != 2 * index + 1:
                hidden = hidden + layer._ff_block(layer.norm2(hidden))
        expected.append(float(F.mse_loss(hidden, targets).detach()))
    assert found.costs.tolist() == pytest.approx(expected, rel=1e-12)
    without = copy.deepcopy(model)
    del without.layers[0]
    assert float(found.curve[2]) == pytest.approx(float(F.mse_loss(without(data), targets).detach()), rel=1e-12)


@pytest.mark.parametrize("name", ["bert", "llama", "encoder", "encoder_of_sequences_first"])
def test_padding_is_left_out_by_the_mask_of_the_block(name):
    network = NETWORKS[name]
    module, data = network.make().eval(), network.batch(4)
    readings = measure_path(module, [{"batch": data}], READ, layers=network.layers, branches=True)
    blocks = measure_path(module, [{"batch": data}], ["cost_of_identity"], layers=network.layers)
    assert len(readings.names) == 2 * len(blocks.names)
    apart = measure_path(module, [{"batch": data}], ["cost_of_identity"], layers=network.layers, branches=True)
    torch.testing.assert_close(apart["cost_of_identity"][::2], blocks["cost_of_identity"])


def test_a_mask_that_the_blocks_are_given_themselves_is_not_told_of():
    module = NETWORKS["encoder"].make()
    observer = PathObserver(module, path_of(module, "encoder.layers.*"), ReadingSettings(READ, branches=True)).attach()
    for _ in range(2):
        observer.arm()
        module(NETWORKS["encoder"].batch(4))
        observer.drain()
    assert observer.notes == ["6 steps found in 3 blocks, as branches=['self_attn', 'linear1'] would name them."]
    assert len(observer.compute().names) == 6


class Task(EncoderTask):
    def __init__(self):
        super().__init__(batch_first=True)
        torch.manual_seed(1)
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.detach()))
        return loss


@pytest.mark.filterwarnings("ignore:EnergyMonitor has no logger")
@pytest.mark.parametrize("branches", [True, ["self_attn", "linear1"]])
def test_a_monitor_reads_from_the_first_batch_on_and_changes_nothing(make_trainer, hooks_of, branches):
    torch.manual_seed(0)
    data = [NETWORKS["encoder"].batch(size) for size in (3, 4, 2)]
    losses = []
    for monitors in ([], [EnergyMonitor("encoder.layers.*", quantities=READ, branches=branches)]):
        torch.manual_seed(0)
        module = Task()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", "EnergyMonitor has no logger|The .*dataloader|.*PYTORCH")
            make_trainer(*monitors).fit(module, DataLoader(data, batch_size=None), DataLoader(data, batch_size=None))
        losses.append(module.losses)
        assert hooks_of(module) == 0
    assert losses[0] == losses[1]
    assert len(monitors[0].readings["train"].names) == len(monitors[0].readings["validate"].names) == 6


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.layers, self.reentrant = encoder().layers, reentrant

    def forward(self, hidden):
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=self.reentrant)
        return hidden


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("branches", [True, ["norm1", "norm2"]])
def test_checkpointed_blocks_read_alike(reentrant, branches):
    data = [(batch(), torch.randn_like(batch()))] * 2
    settings = {"cost": F.mse_loss, "weight_decay": 0.1, "branches": branches}
    expected = read(encoder(), data, ["momentum_norm", "kinetic_energy"], **settings)
    found = read(Checkpointed(reentrant), data, ["momentum_norm", "kinetic_energy"], **settings)
    for key in expected.quantities:
        torch.testing.assert_close(found[key], expected[key])


def test_compiled_code_reads_the_steps_that_are_named():
    model, data = encoder(), [batch()]
    expected = read(model, data, READ, branches=["norm1", "norm2"])
    model.compile(backend="aot_eager")
    torch.testing.assert_close(
        read(model, data, READ, branches=["norm1", "norm2"])["kinetic_energy"], expected["kinetic_energy"]
    )
    with pytest.raises(
        ValueError, match=r"'layers.0', a TransformerEncoderLayer, did not run, or did so in compiled code"
    ):
        read(model, data, READ, branches=True)


def test_a_search_that_finds_nothing_warns_once_and_ends(hooks_of):
    class Parallel(nn.TransformerEncoderLayer):
        def forward(self, src, *args, **kwargs):
            return src + self._sa_block(self.norm1(src), None, None) + self._ff_block(self.norm2(src))

    model = nn.Sequential(*(Parallel(WIDTH, 2, 32, 0.0, batch_first=True) for _ in range(2)))
    observer = PathObserver(model, path_of(model, "*"), ReadingSettings(READ, branches=True)).attach()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(12):
            observer.arm()
            model(batch().float())
            observer.drain()
    assert "No branches are read: '0', a Parallel, holds no state" in str(said[0].message)
    assert len(said) == 1
    assert observer.compute() is None
    assert hooks_of(model) == 0


def test_which_parameters_belong_to_a_branch_is_not_told():
    data = [(batch(), torch.randn_like(batch()))]
    settings = {"cost": F.mse_loss, "weight_decay": 0.1, "branches": True}
    with pytest.raises(ValueError, match=r"`quantities` cannot include \['pontryagin_hamiltonian'\] of `branches`"):
        read(encoder(), data, ["pontryagin_hamiltonian"], **settings)
    assert "momentum_norm" in read(encoder(), data, **settings).quantities
