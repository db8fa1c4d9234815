"""EnergyMonitor on networks that know nothing of it: what it takes, what it finds, and what it warns of."""

import logging
import pickle
import re
import warnings
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor, Layout, StepSizeAdapter, make_leaky, measure_path
from lightning_leaky.functional import objective_weight_decay
from lightning_leaky.metrics import path_reader
from tests.blocks import effective_dimension
from tests.callbacks.helpers import DEFAULTS, MOMENTA, rows_of, steps_with

WIDTH = 5


class Block(nn.Module):
    """h + W2 relu(W1 h)."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def change(self, hidden):
        return self.second(torch.relu(self.first(hidden)))

    def forward(self, hidden):
        return hidden + self.change(hidden)


class Foreign(LightningModule):
    """A stack of blocks, run one after another, in somebody's module."""

    def __init__(self, blocks, decay=0.0):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.decay = decay

    def run(self, hidden):
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def forward(self, hidden):
        return self.run(hidden)

    def training_step(self, batch, batch_idx):
        loss = self(batch["hidden"] if isinstance(batch, dict) else batch).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self(batch["hidden"] if isinstance(batch, dict) else batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2, weight_decay=self.decay)


class Shared(Foreign):
    def run(self, hidden):
        return super().run(super().run(hidden))


def blocks(cls=Block, num_layers=3, **kwargs):
    torch.manual_seed(0)
    return [cls(**kwargs) for _ in range(num_layers)]


def loader(*shape, num_batches=2):
    generator = torch.Generator().manual_seed(1)
    return DataLoader(
        [torch.randn(shape or (7, WIDTH), generator=generator) for _ in range(num_batches)], batch_size=None
    )


def read(make_trainer, module, data=None, monitor=None, **settings):
    monitor = EnergyMonitor("blocks.*") if monitor is None else monitor
    trainer = make_trainer(monitor, max_epochs=1, **settings)
    trainer.fit(module, loader() if data is None else data)
    return monitor


def assert_same(found, expected):
    assert found.quantities.keys() == expected.quantities.keys()
    for name, values in expected.quantities.items():
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=1e-6)


# What blocks may take and return.


class Keyword(Block):
    def forward(self, *, mask, hidden):
        return super().forward(hidden)


class Tuples(Block):
    def forward(self, hidden):
        return None, hidden.mean(), super().forward(hidden)


class Dicts(Block):
    def forward(self, hidden):
        return {"norms": hidden.norm(dim=1), "hidden": super().forward(hidden)}


@dataclass
class Output:
    hidden: Tensor
    cache: object = None


class Dataclasses(Block):
    def forward(self, hidden):
        return Output(super().forward(hidden))


CALLS = {
    Keyword: lambda block, hidden: block(mask=hidden > 0, hidden=hidden),
    Tuples: lambda block, hidden: block(hidden)[2],
    Dicts: lambda block, hidden: block(hidden)["hidden"],
    Dataclasses: lambda block, hidden: block(hidden).hidden,
}


class Calling(Foreign):
    def run(self, hidden):
        for block in self.blocks:
            hidden = CALLS[type(block)](block, hidden)
        return hidden


@pytest.mark.parametrize("cls", CALLS)
@pytest.mark.parametrize("layers", ["blocks.*", None])
def test_blocks_may_take_keywords_and_return_structures(make_trainer, cls, layers):
    plain = read(make_trainer, Foreign(blocks())).readings["train"]
    found = read(make_trainer, Calling(blocks(cls)), monitor=EnergyMonitor(layers)).readings["train"]
    assert_same(found, plain)


# Layers that nobody has named.


def test_blocks_are_found_named_and_read_from_the_first_batch_on(make_trainer, tmp_path, caplog):
    class Stem(Block):
        """Preserves the shape too, but is no block of the run."""

    class Whole(Foreign):
        def __init__(self, blocks):
            super().__init__(blocks)
            self.stem, self.norm = Stem(), nn.LayerNorm(WIDTH)

        def run(self, hidden):
            return self.norm(super().run(self.stem(hidden)))

    logger = CSVLogger(tmp_path)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        monitor = read(make_trainer, Whole(blocks()), loader(num_batches=4), EnergyMonitor(), logger=logger)
    lines = [record.getMessage() for record in caplog.records if "EnergyMonitor" in record.getMessage()]
    assert lines == ["EnergyMonitor: 3 layers found: blocks.0 to blocks.2 (Block)."]
    assert monitor.readings["train"].names == ("blocks.0", "blocks.1", "blocks.2")
    rows = rows_of(logger.log_dir)
    assert steps_with(rows, "cost_of_identity/layer_03") == steps_with(rows, "loss") == [0, 1, 2, 3]


@pytest.mark.parametrize(("every_n_steps", "num_batches"), [(1, 1), (1, 4), (3, 4)])
def test_found_blocks_read_like_named_ones(make_trainer, every_n_steps, num_batches):
    """Whether the first batch is itself due or not; and over whole validation sets, momenta included."""
    readings = []
    for layers in (None, "blocks.*"):
        quantities = ["cost_of_identity", "kinetic_energy", "hamiltonian"]
        monitor = EnergyMonitor(layers, quantities, every_n_steps=every_n_steps, weight_decay=0.3)
        data = loader(num_batches=num_batches)
        make_trainer(monitor, max_epochs=1).fit(Foreign(blocks()), data, loader(num_batches=3))
        readings.append(monitor.readings)
    for stage in ("train", "validate"):
        assert_same(readings[0][stage], readings[1][stage])
    assert readings[0]["train"]["hamiltonian"].isfinite().all()


def test_blocks_are_named_on_the_first_batch_even_where_it_is_not_read(make_trainer, caplog):
    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            said.append(sum("layers found" in record.getMessage() for record in caplog.records))

    said = []
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        monitor = EnergyMonitor(every_n_steps=3)
        make_trainer(monitor, Watch(), max_epochs=1).fit(Foreign(blocks()), loader(num_batches=4))
    assert said == [1, 1, 1, 1]


def test_one_block_is_no_run(make_trainer):
    with pytest.warns(UserWarning, match="Name the layers"):
        monitor = read(make_trainer, Foreign(blocks(num_layers=1)), monitor=EnergyMonitor())
    assert monitor.readings == {}


@pytest.mark.parametrize("layers", ["blocks.*", None])
def test_passes_of_a_path_that_runs_twice_are_more_rows(make_trainer, layers):
    """Each layer's states, and the gradients that each pass got, are those of both passes, one below the other."""
    monitor = EnergyMonitor(layers, ["cost_of_identity", "momentum_norm"], weight_decay=0.3)
    data = loader(num_batches=1)
    read(make_trainer, Shared(blocks()), data, monitor)
    fresh, states = blocks(), [next(iter(data)).requires_grad_()]
    for block in [*fresh, *fresh]:
        states.append(block(states[-1]))
    gradients = torch.autograd.grad(states[-1].square().mean(), states[1:])
    rows = [torch.cat([states[index], states[index + 3]]).detach() for index in range(3)]
    norms = torch.stack([torch.cat([gradients[index], gradients[index + 3]]).norm() for index in range(3)])
    expected = torch.stack([effective_dimension(one) for one in rows])
    torch.testing.assert_close(monitor.readings["train"]["cost_of_identity"], expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(monitor.readings["train"]["momentum_norm"], norms.double() / 0.3, rtol=1e-5, atol=0)


def test_blocks_are_found_without_a_fit(make_trainer, hooks_of):
    module, monitor = Foreign(blocks()), EnergyMonitor()
    make_trainer(monitor).validate(module, loader(num_batches=3), verbose=False)
    assert_same(monitor.readings["validate"], measure_path(module, loader(num_batches=3), list(DEFAULTS)))
    assert hooks_of(module) == 0


def test_of_two_runs_the_longer_is_taken_of_equals_the_larger(make_trainer):
    class Two(Foreign):
        def __init__(self, first, second):
            super().__init__(first)
            self.others = nn.ModuleList(second)

        def run(self, hidden):
            hidden = super().run(hidden) + 1
            for block in self.others:
                hidden = block(hidden)
            return hidden

    class Large(Block):
        def __init__(self):
            super().__init__()
            self.third = nn.Linear(WIDTH, WIDTH)

        def change(self, hidden):
            return self.third(super().change(hidden))

    for first, second, names in (
        (blocks(), blocks(num_layers=2), "blocks"),
        (blocks(num_layers=2), blocks(), "others"),
        (blocks(), blocks(Large), "others"),
        (blocks(Large), blocks(), "blocks"),
    ):
        monitor = read(make_trainer, Two(first, second), monitor=EnergyMonitor())
        assert {name.split(".")[0] for name in monitor.readings["train"].names} == {names}


# Segments.


class Widening(Block):
    def __init__(self, width=WIDTH):
        super().__init__(width)
        self.wide = nn.Linear(width, 2 * width)

    def forward(self, hidden):
        return self.wide(super().forward(hidden))


@pytest.mark.parametrize("layers", ["blocks.*", Block])
def test_blocks_that_change_the_width_split_the_path(make_trainer, tmp_path, layers):
    """They are not read; ρ = 1/L over the others, and no velocity crosses the change."""
    torch.manual_seed(0)
    module = Foreign([Block(), Block(), Widening(), Block(2 * WIDTH)])
    logger = CSVLogger(tmp_path)
    monitor = read(
        make_trainer, module, loader(num_batches=1), EnergyMonitor(layers), logger=logger, precision="64-true"
    )
    readings = monitor.readings["train"]
    assert readings.segments == (2, 1)
    assert readings.names == ("blocks.0", "blocks.1", "blocks.3")
    torch.testing.assert_close(readings.step_sizes, torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.manual_seed(0)
    fresh = [Block(), Block(), Widening(), Block(2 * WIDTH)]
    (hidden,) = [batch.double() for batch in loader(num_batches=1)]
    expected = []
    for block in fresh:
        expected.append(hidden.detach())
        hidden = block.double()(hidden)
    for index, place in enumerate([0, 1, 3]):
        torch.testing.assert_close(readings["cost_of_identity"][index], effective_dimension(expected[place]))
    keys = rows_of(logger.log_dir)[0]
    assert {
        "cost_of_identity/layer_03",
        "cost_of_identity/segment_2/min",
        "cost_of_identity/segment_1/min",
    } <= set(keys)
    assert "cost_of_identity/min" not in keys


# Padding, thinning, memory.


def token_loader(mask):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 6, WIDTH, generator=generator)
    return DataLoader([{"hidden": hidden, "attention_mask": mask, "lengths": mask.sum(1)}], batch_size=None), hidden


MASK = torch.arange(6)[None] < torch.tensor([6, 3, 1, 2])[:, None]


def from_lengths(batch):
    return torch.arange(6)[None] < batch["lengths"][:, None]


@pytest.mark.parametrize(
    ("padding_mask", "honoured"),
    [("attention_mask", True), (from_lengths, True), (f"{__name__}.from_lengths", True), (None, False)],
)
def test_padding_is_left_out(make_trainer, padding_mask, honoured):
    data, hidden = token_loader(MASK.long())
    monitor = EnergyMonitor("blocks.*", padding_mask=padding_mask)
    make_trainer(monitor, max_epochs=1).fit(Foreign(blocks()), data)
    rows = hidden[MASK] if honoured else hidden.reshape(-1, WIDTH)
    first = monitor.readings["train"]["cost_of_identity"][0]
    torch.testing.assert_close(first, effective_dimension(rows), rtol=1e-6, atol=0)
    module = Foreign(blocks())
    make_trainer(monitor).validate(module, data, verbose=False)
    assert_close_first(monitor.readings["validate"], measure_path(module, [rows], ["cost_of_identity"]))


@pytest.mark.parametrize("padding_mask", ["nokey", "no.such.function"])
def test_a_mask_that_the_batch_does_not_have_is_named(make_trainer, padding_mask):
    data, _ = token_loader(MASK.long())
    with pytest.warns(UserWarning, match=f"'{padding_mask}'; the batch has the keys .'hidden', 'attention_mask'"):
        monitor = read(make_trainer, Foreign(blocks()), data, EnergyMonitor("blocks.*", padding_mask=padding_mask))
    assert monitor.readings == {}


def test_a_batch_of_padding_alone_is_no_reading(make_trainer):
    data, _ = token_loader(torch.zeros(4, 6))
    monitor = EnergyMonitor("blocks.*", padding_mask="attention_mask")
    with pytest.warns(UserWarning, match="no position in it is real"):
        assert read(make_trainer, Foreign(blocks()), data, monitor).readings == {}


def test_tokens_of_all_sequences_in_one_axis_have_padding_too(make_trainer):
    class Flat(Foreign):
        def run(self, hidden):
            return super().run(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])

    data, hidden = token_loader(MASK.long())
    monitor = EnergyMonitor("blocks.*", padding_mask="attention_mask")
    first = read(make_trainer, Flat(blocks()), data, monitor).readings["train"]["cost_of_identity"][0]
    torch.testing.assert_close(first, effective_dimension(hidden[MASK]), rtol=1e-6, atol=0)


class Side(nn.Module):
    """Blocks that may be given a mask, which they do not look at."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, hidden, attention_mask=None):
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class TwoSided(Foreign):
    """An encoder and a decoder, which hands on to each the mask that is its own."""

    def __init__(self, encoder, decoder):
        super().__init__([])
        self.encoder, self.decoder = Side(encoder), Side(decoder)

    def forward(self, hidden, attention_mask=None, decoder_attention_mask=None):
        hidden = self.encoder(hidden, attention_mask=attention_mask)
        return self.decoder(hidden + 1, attention_mask=decoder_attention_mask)

    def training_step(self, batch, batch_idx):
        masks = {name: mask for name, mask in batch.items() if "mask" in name}
        return self(batch["hidden"], **masks).square().mean()


@pytest.mark.parametrize("own_mask", [None, MASK.flip(0)])
def test_each_side_is_read_with_the_mask_that_it_is_given(make_trainer, own_mask):
    """Its sizes would fit the other side too."""
    hidden = next(iter(token_loader(MASK.long())[0]))["hidden"]
    batch = {"hidden": hidden, "attention_mask": MASK.long()}
    if own_mask is not None:
        batch["decoder_attention_mask"] = own_mask
    module, seen = TwoSided(blocks(), blocks()), []
    module.decoder.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0].detach()))
    for layers, mask in (("encoder.blocks.*", MASK), ("decoder.blocks.*", own_mask)):
        monitor = read(make_trainer, module, DataLoader([batch], batch_size=None), EnergyMonitor(layers))
        taken = hidden if mask is MASK else seen[-1]
        rows = taken.flatten(0, 1) if mask is None else taken[mask]
        first = monitor.readings["train"]["cost_of_identity"][0]
        torch.testing.assert_close(first, effective_dimension(rows), rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_packed_sequences_are_read_whatever_the_size_of_the_batchs_mask(make_trainer):
    """In evaluation torch's encoder packs padded batches, and cuts them to the longest sequence."""

    class Packed(Foreign):
        def __init__(self):
            super().__init__([])
            layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def validation_step(self, batch, batch_idx):
            self.encoder(batch["hidden"], src_key_padding_mask=batch["attention_mask"] == 0)

    hidden, mask = torch.randn(3, 7, 6), torch.arange(7)[None] < torch.tensor([2, 4, 1])[:, None]
    data = DataLoader([{"hidden": hidden, "attention_mask": mask.long()}], batch_size=None)
    for layers in ("encoder.layers.*", None):
        monitor = EnergyMonitor(layers)
        make_trainer(monitor).validate(Packed(), data, verbose=False)
        first = monitor.readings["validate"]["cost_of_identity"][0]
        torch.testing.assert_close(first, effective_dimension(hidden[mask]), rtol=1e-6, atol=0)


def test_each_layer_has_the_padding_that_it_was_told(make_trainer):
    class Told(Foreign):
        def run(self, hidden):
            first, second = self.blocks
            return second(first(hidden, src_key_padding_mask=~MASK), src_key_padding_mask=MASK)

    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(WIDTH, 1, 8, dropout=0.0, batch_first=True) for _ in range(2)]
    _, hidden = token_loader(MASK)
    monitor = read(make_trainer, Told(layers), DataLoader([hidden], batch_size=None))
    torch.manual_seed(0)
    first = nn.TransformerEncoderLayer(WIDTH, 1, 8, dropout=0.0, batch_first=True)
    between = first(hidden, src_key_padding_mask=~MASK).detach()
    expected = torch.stack([effective_dimension(hidden[MASK]), effective_dimension(between[~MASK])])
    torch.testing.assert_close(monitor.readings["train"]["cost_of_identity"], expected, rtol=1e-5, atol=0)


def assert_close_first(found, expected):
    torch.testing.assert_close(found["cost_of_identity"], expected["cost_of_identity"], rtol=1e-5, atol=0)


def test_padding_that_torch_layers_are_told_of_is_left_out(make_trainer):
    class Told(Foreign):
        def run(self, hidden):
            for block in self.blocks:
                hidden = block(hidden, src_key_padding_mask=~MASK)
            return hidden

    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(WIDTH, 1, 8, dropout=0.0, batch_first=True) for _ in range(2)]
    _, hidden = token_loader(MASK)
    for padding_mask, rows in (("attention_mask", hidden[MASK]), (None, hidden.reshape(-1, WIDTH))):
        monitor = EnergyMonitor("blocks.*", padding_mask=padding_mask)
        read(make_trainer, Told(layers), DataLoader([hidden], batch_size=None), monitor)
        first = monitor.readings["train"]["cost_of_identity"][0]
        torch.testing.assert_close(first, effective_dimension(rows), rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", [Layout(max_samples=8), Layout(per_sample=True)])
def test_rows_are_chosen_by_the_layout(make_trainer, layout):
    data, hidden = token_loader(torch.ones(4, 6))
    monitor = read(make_trainer, Foreign(blocks()), data, EnergyMonitor("blocks.*", layout=layout))
    expected = effective_dimension(layout.rows(hidden))
    torch.testing.assert_close(monitor.readings["train"]["cost_of_identity"][0], expected, rtol=1e-6, atol=0)


SEVEN_ROWS = 7 * 2 * 3 * 4 * WIDTH
"""Bytes of a batch of `loader`, at both ends of three layers; second moments would take more."""


def test_a_wide_network_is_read_from_its_samples_and_told_once(make_trainer, monkeypatch, caplog):
    readings = []
    for limit in (2**30, SEVEN_ROWS):
        monkeypatch.setattr(path_reader, "MEMORY_LIMIT", limit)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
            readings.append(read(make_trainer, Foreign(blocks()), loader(num_batches=3)).readings["train"])
        assert len([one for one in caplog.records if "N × N form" in one.getMessage()]) == (limit == SEVEN_ROWS)
    assert_same(*readings)


@pytest.mark.parametrize(
    ("limit", "rows_read"),
    [
        (SEVEN_ROWS, [range(7), []]),
        (SEVEN_ROWS * 10 / 7, [range(7), [0, 3, 6]]),
        (SEVEN_ROWS * 4 / 7, [[0, 2, 4, 6], []]),
        (1, [[0], []]),
    ],
)
def test_samples_that_no_memory_is_left_for_are_not_read(make_trainer, monkeypatch, limit, rows_read):
    monkeypatch.setattr(path_reader, "MEMORY_LIMIT", int(limit))
    monitor, module, batches = EnergyMonitor("blocks.*", exact=True), Foreign(blocks()), loader(num_batches=4)
    with pytest.warns(UserWarning, match="Some samples are not read") as caught:
        make_trainer(monitor).validate(module, batches, verbose=False)
    assert len([one for one in caught if "not read" in str(one.message)]) == 1
    kept = torch.cat([batch[list(rows)] for batch, rows in zip(batches, rows_read, strict=False)])
    with torch.no_grad():
        expected = effective_dimension(kept)
    torch.testing.assert_close(monitor.readings["validate"]["cost_of_identity"][0], expected, rtol=1e-5, atol=0)


def test_momenta_are_read_of_whole_batches(make_trainer, monkeypatch):
    readings = []
    for limit in (2**30, 1):
        monkeypatch.setattr(path_reader, "MEMORY_LIMIT", limit)
        monitor = EnergyMonitor("blocks.*", quantities=["momentum_norm"], weight_decay=0.1)
        readings.append(read(make_trainer, Foreign(blocks()), loader(num_batches=1), monitor).readings["train"])
    assert_same(*readings)


# λ.


@pytest.mark.parametrize("given", [None, 0.3])
def test_weight_decay_is_taken_from_the_optimizer_unless_given(make_trainer, given):
    monitor = EnergyMonitor("blocks.*", ["momentum_norm"], weight_decay=given)
    module, data = Foreign(blocks(), decay=0.06), loader(num_batches=1)
    read(make_trainer, module, data, monitor)
    path = [next(iter(data)).requires_grad_()]
    for block in blocks():
        path.append(block(path[-1]))
    gradients = torch.autograd.grad(path[-1].square().mean(), path[1:])
    lam = objective_weight_decay(0.06, 3, 0.0) if given is None else given
    assert given is not None or lam == pytest.approx(0.02)
    expected = torch.stack([gradient.norm() for gradient in gradients]).double() / lam
    torch.testing.assert_close(monitor.readings["train"]["momentum_norm"], expected, rtol=1e-5, atol=0)


def test_exempted_biases_do_not_count_and_differing_matrices_do(make_trainer):
    class Groups(Foreign):
        def __init__(self, blocks, second):
            super().__init__(blocks)
            self.second = second

        def configure_optimizers(self):
            groups = {0.06: [], 0.0: [], self.second: []}
            for name, parameter in self.named_parameters():
                wanted = 0.0 if parameter.ndim == 1 else self.second if "second" in name else 0.06
                groups[wanted].append(parameter)
            return torch.optim.SGD(
                [{"params": params, "weight_decay": decay} for decay, params in groups.items()], 0.01
            )

    monitor = read(make_trainer, Groups(blocks(), 0.06), monitor=EnergyMonitor("blocks.*", ["momentum_norm"]))
    assert monitor.readings["train"].is_finite()
    with pytest.raises(ValueError, match="`weight_decay`"):
        read(make_trainer, Groups(blocks(), 0.05), monitor=EnergyMonitor("blocks.*", ["momentum_norm"]))


def test_frozen_matrices_beside_trained_ones_have_no_single_weight_decay(make_trainer):
    class Adapted(Foreign):
        def configure_optimizers(self):
            trained = [parameter for name, parameter in self.named_parameters() if "second" in name]
            return torch.optim.SGD(trained, 0.01, weight_decay=0.1)

    with pytest.raises(ValueError, match="one weight decay > 0 on all matrices"):
        read(make_trainer, Adapted(blocks()), monitor=EnergyMonitor("blocks.*", ["momentum_norm"]))


@pytest.mark.parametrize("layout", [Layout(max_samples=8), Layout(per_sample=True)])
@pytest.mark.parametrize("quantity", MOMENTA[3:])
def test_momenta_of_a_part_of_the_positions_are_refused(make_trainer, layout, quantity):
    monitor = EnergyMonitor("blocks.*", [quantity], weight_decay=0.1, layout=layout)
    with pytest.raises(ValueError, match="`layout` must read every position"):
        read(make_trainer, Foreign(blocks()), monitor=monitor)


# What cannot be read: one warning, and training as without the monitor.


class Skipping(Foreign):
    def run(self, hidden):
        return self.blocks[2](self.blocks[0](hidden))


class Integers(Block):
    def forward(self, hidden):
        self.out = super().forward(hidden)
        return (self.out > 0).long()


class Unreadable(Foreign):
    def run(self, hidden):
        for block in self.blocks:
            block(hidden)
            hidden = block.out
        return hidden


class InPlace(Block):
    def forward(self, hidden):
        return hidden.add_(self.change(hidden.clone()))


class Rectified(Block):
    """Overwrites its input and returns something else: only the input itself tells."""

    def forward(self, hidden):
        return hidden + self.change(torch.relu_(hidden))


class Fresh(Foreign):
    """Hands each block a tensor that may be overwritten."""

    def run(self, hidden):
        for block in self.blocks:
            hidden = block(hidden * 1)
        return hidden


class Afterwards(Foreign):
    """The code between the blocks overwrites what they took and returned."""

    def run(self, hidden):
        for block in self.blocks:
            taken = hidden * 1
            hidden = block(taken)
            with torch.no_grad():
                kept = hidden.clone()
                taken.detach().zero_()
                hidden.detach().zero_()
            hidden = kept
        return hidden + self.blocks[0].first.weight.sum()


class Crowd(Foreign):
    def run(self, hidden):
        return super().run(hidden[:, None, None, None, None])[:, 0, 0, 0, 0]


class Token(Foreign):
    def run(self, hidden):
        return super().run(hidden[:, None])[:, 0]


BAD = {
    "silent": (Skipping, Block, {}, r"\['blocks\.1'\] did not run"),
    "integers": (Unreadable, Integers, {}, r"'blocks\.0' takes or returns no floating-point tensor"),
    "six axes": (Crowd, Block, {}, "`layout` must name the axes"),
    "other axes": (Foreign, Block, {"layout": Layout("tnc")}, "`layout` must name the axes"),
    "mask": (Token, Block, {"padding_mask": lambda batch: torch.ones(3)}, r"`padding_mask` must have shape \(7, 1\)"),
}


@pytest.mark.parametrize(("cls", "block", "settings", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_what_cannot_be_read_is_one_warning_and_harms_nothing(make_trainer, cls, block, settings, message, stage):
    runs = []
    for monitors in ([], [EnergyMonitor("blocks.*", **settings)]):
        module, data = cls(blocks(block)), loader(num_batches=3)
        trainer = make_trainer(*monitors, max_epochs=2, limit_val_batches=3 if stage == "validate" else 0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if stage == "fit":
                trainer.fit(module, data)
            else:
                trainer.validate(module, data, verbose=False)
        runs.append(module.state_dict())
    told = [str(one.message) for one in caught if "not read" in str(one.message)]
    assert len(told) == 1
    assert re.search(message, told[0]), told
    assert monitors[0].readings == {}
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


class OutOfPlace(Block):
    """What `Rectified` returns."""

    def forward(self, hidden):
        return torch.relu(hidden) + self.change(torch.relu(hidden))


class Handing(Foreign):
    """Its blocks hand on the tensor that the first one is given."""

    def run(self, hidden):
        return super().run(hidden * 1)


@pytest.mark.parametrize(
    ("layers", "make"),
    [
        ("blocks.*", lambda: Fresh(blocks(InPlace))),
        ("blocks.*", lambda: Afterwards(blocks())),
        ("blocks.*", lambda: Handing(blocks(InPlace))),
        (None, lambda: Handing(blocks(InPlace))),
    ],
    ids=["by a block", "by the code between", "handed on", "found"],
)
def test_what_is_overwritten_reads_as_it_was(make_trainer, layers, make):
    """In the first batch and in later ones, in training and in a validation, where torch counts no writes."""
    read_of = []
    for module in (make(), Foreign(blocks())):
        module.configure_optimizers = lambda module=module: torch.optim.SGD(module.parameters(), 0.0)
        monitor = EnergyMonitor(layers)
        make_trainer(monitor, max_epochs=1).fit(module, loader(num_batches=3), loader(num_batches=3))
        read_of.append(monitor.readings)
    for stage in ("train", "validate"):
        assert_same(read_of[0][stage], read_of[1][stage])


class Graph(Block):
    """Takes a sparse matrix too, and a list that it appends to."""

    def forward(self, cache, hidden, adjacency):
        cache.append(hidden.sum())
        return super().forward(adjacency @ hidden)


class Graphs(Foreign):
    def run(self, hidden):
        cache, adjacency = [], torch.eye(len(hidden)).to_sparse()
        for block in self.blocks:
            hidden = block(cache, hidden, adjacency)
        return hidden


def test_sparse_tensors_and_growing_lists_beside_the_state_do_no_harm(make_trainer):
    plain = read(make_trainer, Foreign(blocks())).readings["train"]
    assert_same(read(make_trainer, Graphs(blocks(Graph))).readings["train"], plain)
    module = make_leaky(Graphs(blocks(Graph)), "blocks.*")
    make_trainer(StepSizeAdapter(every_n_steps=1), max_epochs=1).fit(module, loader())
    assert module.leaky_steps.step_sizes.std() > 0


def test_a_mask_function_that_fails_does_no_harm(make_trainer):
    monitor = EnergyMonitor("blocks.*", padding_mask=lambda batch: {}["nope"])
    with pytest.warns(UserWarning, match="A batch is not read"):
        assert read(make_trainer, Foreign(blocks()), monitor=monitor).readings == {}


def test_a_search_that_found_nothing_is_given_up(make_trainer, hooks_of):
    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            counts.append(hooks_of(pl_module))

    counts, monitor = [], EnergyMonitor(on_validation=False)
    with pytest.warns(UserWarning, match="Name the layers"):
        make_trainer(monitor, Watch(), max_epochs=1).fit(Foreign(blocks(num_layers=1)), loader(num_batches=3))
    assert counts == [0, 0, 0]


def test_a_copy_of_the_monitor_leaves_the_module_behind(make_trainer):
    """Lightning hands each callback the module's own `log`, which would bring the module along."""
    monitor = read(make_trainer, Foreign(blocks()))
    assert vars(monitor)["log"].__self__ is not None
    assert b"Foreign" not in pickle.dumps(monitor)


@pytest.mark.parametrize("in_place", [False, True])
def test_many_blocks_compiled_one_by_one(make_trainer, in_place):
    """Wrapped, they share their graphs; compiled in place each is a graph of its own, which torch bounds."""
    torch._dynamo.reset()
    module = Foreign(blocks(num_layers=12))
    expected = read(make_trainer, Foreign(blocks(num_layers=12)), loader(num_batches=1)).readings["train"]
    counter = CompileCounterWithBackend("eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index, block in enumerate(module.blocks):
            if in_place:
                block.compile(backend=counter)
            else:
                module.blocks[index] = torch.compile(block, backend=counter, fullgraph=True)
        monitor = read(make_trainer, module, loader(num_batches=1))
    assert_same(monitor.readings["train"], expected)
    assert monitor.readings["train"].names[0] == "blocks.0"
    assert any("compiled one by one" in str(one.message) for one in caught) == in_place
    assert in_place or counter.frame_count <= 2


def test_what_is_checked_on_a_first_batch_is_checked_on_the_first_that_can_be_read(make_trainer):
    class Parallel(Token):
        def run(self, hidden):
            return sum(block(hidden[:, None])[:, 0] for block in self.blocks)

    masks = iter([torch.ones(3), None, None])
    monitor = EnergyMonitor("blocks.*", padding_mask=lambda batch: next(masks))
    with pytest.warns(UserWarning, match="are not on one path"):
        read(make_trainer, Parallel(blocks()), loader(num_batches=3), monitor)
    assert monitor.readings["train"].is_finite()


def test_layers_that_are_not_on_one_path_are_named_and_read_each_for_itself(make_trainer):
    class Parallel(Foreign):
        def run(self, hidden):
            return sum(block(hidden) for block in self.blocks)

    with pytest.warns(UserWarning, match=r"'blocks\.0' and 'blocks\.1' are not on one path") as caught:
        monitor = read(make_trainer, Parallel(blocks()), loader(num_batches=3))
    assert len([one for one in caught if "one path" in str(one.message)]) == 1
    values = monitor.readings["train"]["cost_of_identity"]
    assert torch.equal(values, values[:1].expand(3))


def test_code_between_the_blocks_that_copies_is_no_other_path(make_trainer):
    class Copies(Foreign):
        def run(self, hidden):
            for block in self.blocks:
                hidden = block(hidden).clone()
            return hidden

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(make_trainer, Copies(blocks()))
    assert not [one for one in caught if "one path" in str(one.message)]


def test_a_batch_of_another_shape_is_left_out(make_trainer, tmp_path):
    class Parameterless(Foreign):
        def run(self, hidden):
            return super().run(hidden) + self.extra.weight.sum()

    module = Parameterless([nn.Identity(), nn.Identity()])
    module.extra = nn.Linear(1, 1)
    data = DataLoader([torch.randn(7, 5), torch.randn(7, 4), torch.randn(7, 5)], batch_size=None)
    logger = CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match=r"maps \(7, 4\) to \(7, 4\), and in the first .* a width of 5"):
        monitor = read(make_trainer, module, data, logger=logger)
    assert steps_with(rows_of(logger.log_dir), "loss") == [0, 1, 2]
    assert steps_with(rows_of(logger.log_dir), "cost_of_identity/layer_01") == [0, 2]
    torch.testing.assert_close(
        monitor.readings["train"]["cost_of_identity"][0], effective_dimension(data.dataset[2]), rtol=1e-6, atol=0
    )


def test_the_adapter_reads_blocks_that_overwrite_their_input_as_it_was(make_trainer):
    """Of a path that is not ours to check: anything with layers, step-sizes and an effective depth."""
    adapted = []
    for block in (Rectified, OutOfPlace):
        module = Fresh(blocks(block))
        module.layers, module.effective_depth = module.blocks, 0.0
        module.register_buffer("step_sizes", torch.full((3,), 1 / 3))
        make_trainer(StepSizeAdapter(every_n_steps=1), max_epochs=1).fit(module, loader())
        adapted.append(module.step_sizes)
    assert adapted[0].std() > 0
    torch.testing.assert_close(*adapted)


def test_one_line_adapts_and_one_reads_a_leaky_model(make_trainer):
    module, monitor = make_leaky(Foreign(blocks()), "blocks.*", 0.5), EnergyMonitor()
    read(make_trainer, module, monitor=monitor)
    assert monitor.readings["train"].effective_depth == 0.5
    adapter = StepSizeAdapter(every_n_steps=1, damping=0.5)
    make_trainer(adapter, monitor, max_epochs=3).fit(module, loader())
    torch.testing.assert_close(module.leaky_steps.step_sizes.sum(), torch.tensor(1.0).double())
    assert module.leaky_steps.step_sizes.std() > 1e-3
    assert not torch.equal(monitor.readings["train"].step_sizes, torch.full((3,), 1 / 3, dtype=torch.float64))
