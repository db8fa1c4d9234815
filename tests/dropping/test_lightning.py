"""A Lightning checkpoint of the smaller model is loaded again."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_leaky.dropping import drop_layers
from tests.blocks import Block
from tests.dropping.helpers import outputs, same, skipped


class Plain(LightningModule):
    def __init__(self, num_layers=4, width=6, num_heads=4, name="plain"):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.ModuleList(Block(width) for _ in range(num_layers))
        self.head = nn.Linear(width, num_heads)

    def forward(self, hidden):
        for block in self.encoder:
            hidden = block(hidden)
        return self.head(hidden)

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Deep(Plain):
    """Settings inside of others, and a list of one width a block."""

    def __init__(self, net):
        super().__init__(num_layers=len(net["widths"]))
        self.save_hyperparameters("net")

    def on_save_checkpoint(self, checkpoint):
        checkpoint["hyper_parameters"] = {"net": checkpoint["hyper_parameters"]["net"]}


class TwoStacks(Plain):
    def __init__(self, encoder_depth=4, decoder_depth=4):
        super().__init__(num_layers=encoder_depth)
        self.save_hyperparameters("encoder_depth", "decoder_depth")
        self.decoder = nn.Sequential(*(Block() for _ in range(decoder_depth)))

    def forward(self, hidden):
        return super().forward(self.decoder(hidden))


class Stages(LightningModule):
    """One number a stage."""

    def __init__(self, depths=(2, 3, 2)):
        super().__init__()
        self.save_hyperparameters()
        self.stages = nn.Sequential(*(nn.Sequential(*(Block() for _ in range(depth))) for depth in depths))

    def forward(self, hidden):
        return self.stages(hidden)


class Given(LightningModule):
    """Its network comes from outside, and is given again when it is loaded."""

    def __init__(self, net, rate=0.1):
        super().__init__()
        self.save_hyperparameters(ignore="net")
        self.net = net

    def forward(self, hidden):
        return self.net(hidden)


class Fixed(Plain):
    """Always as deep, whatever its hyperparameters say."""

    def __init__(self, rate=0.1):
        super().__init__()
        self.save_hyperparameters("rate")

    def on_save_checkpoint(self, checkpoint):
        checkpoint["hyper_parameters"] = {"rate": self.hparams.rate}


class Remembering(Plain):
    """Keeps a number that no buffer holds, by hooks of its own."""

    factor = 1.0

    def forward(self, hidden):
        return self.factor * super().forward(hidden)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["factor"] = self.factor

    def on_load_checkpoint(self, checkpoint):
        self.factor = checkpoint["factor"]


def remembering():
    module = Remembering()
    module.factor = 2.0
    return module


MODULES = {
    "number": (Plain, ["encoder.0", "encoder.2"], {"num_layers": 2, "width": 6, "num_heads": 4}),
    "hooks of its own": (remembering, ["encoder.0"], {"num_layers": 3}),
    "list": (lambda: Deep({"widths": [6, 6, 6, 6]}), ["encoder.1"], {"net": {"widths": [6, 6, 6]}}),
    "first of two": (TwoStacks, ["encoder.1"], {"encoder_depth": 3, "decoder_depth": 4}),
    "second of two": (TwoStacks, ["decoder.1"], {"encoder_depth": 4, "decoder_depth": 3}),
    "both": (TwoStacks, ["encoder.0", "decoder.1", "decoder.2"], {"encoder_depth": 3, "decoder_depth": 2}),
    "stages": (Stages, ["stages.1.0"], {"depths": (2, 2, 2)}),
    "a stage": (Stages, ["stages.1"], {"depths": (2, 2)}),
}


@pytest.mark.parametrize(("make", "gone", "hyperparameters"), MODULES.values(), ids=MODULES)
def test_saved_and_loaded_again(make, gone, hyperparameters, make_trainer, tmp_path):
    module, inputs = make(), torch.randn(3, 6)
    want = skipped(module, gone, inputs)
    drop_layers(module, gone, (inputs, torch.zeros(3)))
    assert {key: module.hparams[key] for key in hyperparameters} == hyperparameters
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "smaller.ckpt")
    again = type(module).load_from_checkpoint(tmp_path / "smaller.ckpt", weights_only=False)
    assert same(outputs(again, inputs), want)
    assert same(outputs(module, inputs), want)


def test_training_goes_on_with_the_optimizer(make_trainer):
    module, batches = Plain(), [torch.randn(3, 6) for _ in range(3)]
    trainer = make_trainer()
    trainer.fit(module, DataLoader(batches, batch_size=None))
    (optimizer,) = trainer.optimizers
    drop_layers(module, "encoder.1", batches[0], trainer.optimizers)
    assert len(optimizer.state) == len(list(module.parameters())) == 8
    steps = [state["step"].item() for state in optimizer.state.values()]
    module.training_step(batches[0], 0).backward()
    optimizer.step()
    assert [state["step"].item() for state in optimizer.state.values()] == [step + 1 for step in steps]


def test_a_network_given_from_outside():
    """Nobody can load it without giving it: nothing is changed but the network."""
    module = Given(nn.Sequential(Block(), Block()))
    drop_layers(module, "net.0", torch.randn(3, 6))
    assert dict(module.hparams) == {"rate": 0.1}


def test_a_module_that_could_not_be_loaded_again_is_refused():
    module = Fixed()
    with pytest.raises(ValueError, match=r"Fixed could not be loaded again.*drop from the model inside and save that"):
        drop_layers(module, "encoder.1", torch.randn(3, 6))
    assert len(module.encoder) == 4


class Wrapping(LightningModule):
    """A model of Hugging Face in a module, both of one number."""

    def __init__(self, num_layers=4):
        transformers = pytest.importorskip("transformers")
        super().__init__()
        self.save_hyperparameters()
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}
        self.net = transformers.BertModel(transformers.BertConfig(**sizes, num_hidden_layers=num_layers))

    def forward(self, ids):
        return self.net(ids).last_hidden_state


def test_a_model_of_hugging_face_inside():
    module, ids = Wrapping(), torch.randint(5, 45, (2, 7))
    want = skipped(module, ["net.encoder.layer.2"], ids)
    drop_layers(module, "net.encoder.layer.2", ids)
    assert module.hparams.num_layers == module.net.config.num_hidden_layers == 3
    assert same(outputs(module, ids), want)


class Rates(LightningModule):
    """A rate of dropout a block: evaluation does not show them."""

    def __init__(self, depth=3, rates=(0.1, 0.2, 0.3)):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(*(nn.Sequential(Block(), nn.Dropout(rate)) for rate in rates[:depth]))

    def forward(self, hidden):
        return self.encoder(hidden)


def test_what_only_training_shows_is_kept():
    model, inputs = Rates(), torch.randn(2, 6)
    drop_layers(model, "encoder.0", inputs)
    assert (model.hparams.depth, tuple(model.hparams.rates)) == (2, (0.2, 0.3))
