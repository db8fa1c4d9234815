"""Other people's loops: which blocks there are, and of timm which of them are read."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_leaky import EnergyMonitor
from tests.others.loops import ENERGIES, Block, Loop, Passed, blocks, close_to, fit, points, read, sgd, told
from tests.others.stubs import timm_module

# 4. Structure is not what one batch shows.


class Wav2Vec2(Loop):
    def __init__(self, layerdrop, **others):
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
        convolutions = {"conv_dim": (4, 4), "conv_stride": (5, 4), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
        none = {"hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0}
        convolutions |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
        others |= {"layerdrop": layerdrop, "apply_spec_augment": False, "initializer_range": 0.3}
        super().__init__(Wav2Vec2Model(Wav2Vec2Config(**sizes, **convolutions, **none, **others)).train())

    def training_step(self, batch, batch_idx):
        return self.net(batch).last_hidden_state.square().mean()

    def validation_step(self, batch, batch_idx):
        self.net(batch)


def layer_drop_of_wav2vec2():
    data = [points(2, 400, seed=seed) for seed in range(16)]
    for layers in (None, "net.encoder.layers.*"):
        module, monitor, ran = Wav2Vec2(0.3), EnergyMonitor(layers, list(ENERGIES), every_n_steps=1), []
        for layer in module.net.encoder.layers:
            layer.register_forward_hook(lambda layer, args, output, ran=ran: ran.append(layer))
        counts = []
        module.on_train_batch_end = lambda outputs, batch, batch_idx, ran=ran, counts=counts: counts.append(len(ran))
        said = fit(module, data, monitor, validation=data[:2], limit_val_batches=2)
        alone = [now - before for before, now in zip([0, *counts], counts, strict=False)]
        last = max(index for index, count in enumerate(alone) if count == 4)
        assert min(alone) < 4
        assert last > 0
        assert monitor.readings["train"].names == tuple(f"net.encoder.layers.{index}" for index in range(4))
        clean = Wav2Vec2(0.0).train()
        clean.load_state_dict(module.state_dict())
        passed = Passed(clean.net.encoder.layers, lambda clean=clean, last=last: clean.training_step(data[last], 0))
        close_to(monitor.readings["train"], passed.energies())
        assert monitor.readings["validate"].names == monitor.readings["train"].names
        assert 1 <= len(told(said, "not read", "did not run", "layer drop")) <= 4, said


class Dropped(Block):
    """One that a batch may skip as a whole, and then returns what it was given."""

    skips = False

    def forward(self, hidden):
        return hidden if self.skips and self.training else super().forward(hidden)


def depth_that_drops_for_a_whole_batch():
    """Whichever block is idle in the first batch: L, ρ and the names stay."""

    class Dropping(Loop):
        def __init__(self, idle):
            super().__init__(nn.Sequential(*(Dropped() for _ in range(5))))
            self.idle = idle

        def training_step(self, batch, batch_idx):
            for index, block in enumerate(self.net):
                block.skips = index in self.idle[batch_idx]
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self(batch)

    plan = [({0}, set()), ({4}, set()), ({2}, {0}), ({0, 1, 2, 3}, {3}), ({1, 3}, {1, 3})]
    batches = [points(), points(seed=2)]
    for idle in plan:
        for layers in (None, "net.*"):
            module, monitor = Dropping(idle), EnergyMonitor(layers, list(ENERGIES), every_n_steps=1)
            said = fit(module, batches, monitor, validation=batches)
            module.train()
            passed = Passed(module.net, lambda module=module: module.training_step(batches[1], 1))
            assert "train" in monitor.readings, (idle, layers, said)
            assert monitor.readings["train"].names == tuple(f"net.{index}" for index in range(5)), (idle, layers, said)
            close_to(monitor.readings["train"], passed.energies())
            module.eval()
            whole = Passed(module.net, lambda module=module: [module(batch) for batch in batches]).energies()
            close_to(monitor.readings["validate"], whole)


def blocks_that_run_from_the_last_to_the_first():
    """As those of an inverse flow; one is left out of the first batch."""

    class Inverse(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.left_out = blocks(5), None

        def forward(self, hidden):
            for index in reversed(range(5)):
                if index != self.left_out:
                    hidden = self.blocks[index](hidden)
            return hidden

    class Dropping(Loop):
        def training_step(self, batch, batch_idx):
            self.net.left_out = 2 if batch_idx == 0 else None
            return super().training_step(batch, batch_idx)

    module, batches = Dropping(Inverse()), [points(), points(seed=2)]
    readings, _ = read(module, batches, None)
    assert readings.names == tuple(f"net.blocks.{index}" for index in reversed(range(5)))
    inverse = [module.net.blocks[index] for index in reversed(range(5))]
    close_to(readings, Passed(inverse, lambda: module(batches[1])).energies())


def early_exits_in_the_first_batches():
    class Exiting(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.number = blocks(5), 5

        def forward(self, hidden):
            return self.blocks[: self.number](hidden)

    class Leaving(Loop):
        plan = (5,)

        def training_step(self, batch, batch_idx):
            self.net.number = self.plan[batch_idx]
            return super().training_step(batch, batch_idx)

    batches = [points(seed=seed) for seed in range(3)]
    for plan in ((2, 5, 3), (5, 1, 5), (1, 3, 5)):
        for layers in (None, "net.blocks.*"):
            module = Leaving(Exiting())
            module.plan = plan
            readings, _ = read(module, batches, layers)
            last = max(index for index, number in enumerate(plan) if number == 5)
            module.net.number = 5
            passed = Passed(module.net.blocks, lambda module=module, last=last: module(batches[last]))
            assert readings.names == tuple(f"net.blocks.{index}" for index in range(5))
            close_to(readings, passed.energies())


def a_momentum_encoder_longer_than_the_network():
    class Distilled(Loop):
        def __init__(self, freezes):
            super().__init__(nn.ModuleDict({"teacher": blocks(6), "student": blocks(3)}))
            self.net["teacher"].requires_grad_(not freezes)

        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                target = self.net["teacher"](batch)
            return F.mse_loss(self.net["student"](batch), target)

        def validation_step(self, batch, batch_idx):
            self.training_step(batch, batch_idx)

        def configure_optimizers(self):
            return sgd(self.net["student"])

    batch = points()
    for freezes in (True, False):
        module, monitor = Distilled(freezes), EnergyMonitor(None, [*ENERGIES, "momentum_norm"], every_n_steps=1)
        fit(module, [batch], monitor, validation=[batch])
        passed = Passed(module.net["student"], lambda module=module: module.training_step(batch, 0))
        close_to(monitor.readings["train"], {"momentum_norm": passed.momenta(), **passed.energies()})
        close_to(monitor.readings["validate"], passed.energies())


def drop_path_of_single_samples():
    vision_transformer = timm_module("timm.models.vision_transformer")

    class Vit(Loop):
        def __init__(self):
            torch.manual_seed(0)
            super().__init__(nn.Sequential(*(vision_transformer.Block(8, 2, drop_path=0.5) for _ in range(4))))

        def validation_step(self, batch, batch_idx):
            self(batch)

    batch, read_so_far = points(24, 8).reshape(4, 6, 8), []
    for layers in (None, "net.*"):
        torch.manual_seed(3)
        module, monitor = Vit(), EnergyMonitor(layers, list(ENERGIES), every_n_steps=1)
        fit(module, [batch], monitor, validation=[batch])
        assert len(monitor.readings["train"].names) == 4
        module.eval()
        close_to(monitor.readings["validate"], Passed(module.net, lambda module=module: module(batch)).energies())
        read_so_far.append(monitor.readings["train"])
    close_to(read_so_far[0], read_so_far[1].quantities)


# 19. Found, but not all.


def timm_model(name, **settings):
    torch.manual_seed(0)
    net = timm_module().create_model(name, num_classes=3, **settings)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return net


class Images(Loop):
    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()


def swin_of_timm():
    sizes = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2)}
    net = timm_model("swin_tiny_patch4_window7_224", **sizes, drop_path_rate=0.0)
    module, batch = Images(net), points(2 * 3 * 32, 32).reshape(2, 3, 32, 32)
    inside = [block for stage in net.layers for block in stage.blocks]
    want = Passed(inside, lambda: module.training_step(batch, 0)).energies()
    for layers in (r"re:net\.layers\.\d\.blocks\.\d", None):
        monitor = EnergyMonitor(layers, list(ENERGIES), every_n_steps=1)
        said = fit(module, [batch], monitor)
        assert len(monitor.readings["train"].names) == 4, (monitor.readings["train"].names, said)
        assert monitor.readings["train"].segments == (2, 2)
        close_to(monitor.readings["train"], want)


def convnext_of_timm():
    """As deep as its smallest model, and with stages of few blocks."""
    batch = points(2 * 3 * 64, 64).reshape(2, 3, 64, 64)
    channels_last = lambda hidden: hidden.movedim(1, -1).reshape(-1, hidden.shape[1])  # noqa: E731
    for depths in ((2, 2, 6, 2), (2, 3, 1, 2)):
        module = Images(timm_model("convnext_atto", depths=depths, dims=(8, 12, 16, 20), ls_init_value=None))
        inside = [block for stage in module.net.stages for block in stage.blocks]
        want = Passed(inside, lambda module=module: module.training_step(batch, 0)).energies(channels_last)
        for layers in (r"re:net\.stages\.\d\.blocks\.\d", None):
            monitor = EnergyMonitor(layers, list(ENERGIES), every_n_steps=1)
            said = fit(module, [batch], monitor)
            names = monitor.readings["train"].names
            assert len(names) == sum(depths), (names, said)
            assert monitor.readings["train"].segments == depths
            close_to(monitor.readings["train"], want)
