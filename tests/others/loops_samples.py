"""Other people's loops: which samples count, and which axis is the width."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from lightning_leaky import EnergyMonitor, Layout, StepSizeHook, make_leaky, measure_path
from tests.others.loops import (
    ENERGIES,
    WIDTH,
    Block,
    Loop,
    Passed,
    blocks,
    close,
    close_to,
    fit,
    informed,
    points,
    read,
    told,
)
from tests.others.loops_structure import Wav2Vec2

# 5. Which samples count is one rule everywhere.


def rows_of(real):
    """Rows of the real positions, of a representation (batch, tokens, width)."""
    return lambda hidden: hidden[real]


class Tower(nn.Module):
    def __init__(self, takes_mask):
        super().__init__()
        self.layers, self.takes_mask = nn.ModuleList(Block() for _ in range(3)), takes_mask

    def forward(self, hidden, attention_mask=None):
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class TwoTowers(nn.Module):
    """As many patches as tokens."""

    def __init__(self):
        super().__init__()
        self.text, self.vision = Tower(True), Tower(False)

    def forward(self, tokens, pixels, attention_mask):
        text = self.text(tokens, attention_mask=attention_mask).mean(1)
        return F.normalize(text, dim=-1) @ F.normalize(self.vision(pixels).mean(1), dim=-1).T


class Clip(Loop):
    def __init__(self, net):
        super().__init__(net)

    def forward(self, *args, **kwargs):
        return self.net(*args, **kwargs)

    def training_step(self, batch, batch_idx):
        return -self(**batch).diagonal().mean()


def _texts(samples=4, tokens=5, width=WIDTH):
    lengths = torch.arange(samples) % tokens + 1
    real = torch.arange(tokens) < lengths[:, None]
    return points(samples * tokens, width).reshape(samples, tokens, width) * (1 + 9 * ~real[..., None]), real


def a_mask_of_texts_beside_as_many_patches():
    tokens, real = _texts()
    batch = {"tokens": tokens, "pixels": points(20, seed=5).reshape(4, 5, WIDTH), "attention_mask": real.long()}
    module = Clip(TwoTowers())
    for tower, rows in (("vision", None), ("text", rows_of(real))):
        layers = getattr(module.net, tower).layers
        want = Passed(layers, lambda: module.training_step(batch, 0)).energies(rows)
        readings, _ = read(module, [batch], f"net.{tower}.layers.*")
        close_to(readings, want)
        close_to(measure_path(module, [batch], ENERGIES, layers=f"net.{tower}.layers.*"), want)


def clip_of_transformers():
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**sizes, "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    net = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4, initializer_factor=4.0))
    real = torch.arange(5) < torch.tensor([3, 5, 2])[:, None]
    ids = torch.randint(2, 20, (3, 5), generator=torch.Generator().manual_seed(0)).masked_fill(~real, 1)
    batch = {"input_ids": ids, "pixel_values": points(3 * 3 * 8, 8).reshape(3, 3, 8, 8), "attention_mask": real.long()}

    class Contrastive(Clip):
        def training_step(self, batch, batch_idx):
            return -self(**batch).logits_per_text.diagonal().mean()

    module = Contrastive(net)
    for tower, rows in (("vision", None), ("text", rows_of(real))):
        layers = f"net.{tower}_model.encoder.layers.*"
        passed = Passed(getattr(net, f"{tower}_model").encoder.layers, lambda: module.training_step(batch, 0))
        want = passed.energies(rows)
        for choice in (layers, f"re:{layers.replace('.', '[.]').replace('*', '[0-2]')}"):
            readings, _ = read(module, [batch], choice)
            close_to(readings, want)
        close_to(measure_path(module, [batch], ENERGIES, layers=layers), want)


class Texts(NamedTuple):
    inputs: dict
    labels: torch.Tensor


@dataclass
class Example:
    parts: Texts
    weight: float = 1.0


def masks_deep_inside_a_batch():
    tokens, real = _texts(8)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = blocks()

        def forward(self, hidden, attention_mask=None):
            return self.layers(hidden)

    class Unpacking(Loop):
        def training_step(self, batch, batch_idx):
            inputs = batch.parts.inputs
            return self.net(inputs["tokens"], attention_mask=inputs.get("attention_mask")).square().mean()

    module = Unpacking(Encoder())
    want = Passed(module.net.layers, lambda: module.net(tokens)).energies(rows_of(real))
    inputs = {"tokens": tokens, "attention_mask": real.long()}
    readings, _ = read(module, [Example(Texts(inputs, torch.zeros(8)))], "net.layers.*")
    close_to(readings, want)
    inputs = {"tokens": tokens, "extra": [{"is_real": real}]}
    readings, _ = read(module, [Example(Texts(inputs, torch.zeros(8)))], "net.layers.*", padding_mask="is_real")
    close_to(readings, want)
    measured = measure_path(
        module.net, [({"hidden": tokens, "attention_mask": real.long()}, torch.zeros(8))], ENERGIES, layers="layers.*"
    )
    close_to(measured, want)


def a_mask_that_the_network_takes_by_another_name():
    """By position, by a keyword of its own, or for the loss alone."""
    tokens, real = _texts(8)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = blocks()

        def forward(self, hidden, mask=None):
            return self.layers(hidden)

    class Naming(Loop):
        def training_step(self, batch, batch_idx):
            hidden, mask = batch["tokens"], batch["attention_mask"]
            if self.how == "loss":
                return self.net(hidden)[mask.bool()].square().mean()
            return (self.net(hidden, mask) if self.how == "position" else self.net(hidden, mask=mask)).square().mean()

    for how in ("position", "keyword", "loss"):
        module, monitor = Naming(Encoder()), EnergyMonitor("net.layers.*", list(ENERGIES), every_n_steps=1)
        module.how = how
        with informed() as heard:
            said = fit(module, [{"tokens": tokens, "attention_mask": real.long()}], monitor)
        passed = Passed(module.net.layers, lambda module=module: module.net(tokens))
        if not told([*said, *heard], "padding"):
            close_to(monitor.readings["train"], passed.energies(rows_of(real)))
        readings, _ = read(
            module, [{"tokens": tokens, "attention_mask": real.long()}], "net.layers.*", padding_mask="attention_mask"
        )
        close_to(readings, passed.energies(rows_of(real)))


def a_causal_mask_that_blocks_are_given():
    """(tokens, tokens): it says who may look at whom; there are as many samples as tokens, or fewer."""

    class Causal(Block):
        def forward(self, hidden, attention_mask=None):
            return super().forward(hidden)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Causal() for _ in range(3))

        def forward(self, hidden):
            mask = torch.ones(hidden.shape[1], hidden.shape[1]).tril().bool()
            for layer in self.layers:
                hidden = layer(hidden, attention_mask=mask)
            return hidden

    for samples in (4, 5):
        batch, module = points(samples * 5).reshape(samples, 5, WIDTH), Loop(Decoder())
        monitor = EnergyMonitor("net.layers.*", list(ENERGIES), every_n_steps=1)
        with informed() as heard:
            said = fit(module, [batch], monitor)
        assert "train" in monitor.readings, said
        if samples == 4 or not told([*said, *heard], "attention_mask"):
            close_to(monitor.readings["train"], Passed(module.net.layers, lambda m=module, b=batch: m(b)).energies())


def masks_that_a_network_shortens():
    """Of sound, and of the frames that it becomes."""
    module = Wav2Vec2(0.0, feat_extract_norm="layer")
    sound = torch.arange(400) < torch.tensor([400, 240, 120])[:, None]
    batch = {"input_values": points(3, 400), "attention_mask": sound.long()}

    class Masked(Loop):
        def training_step(self, batch, batch_idx):
            return self.net(**batch).last_hidden_state.square().mean()

    masked = Masked(module.net)
    passed = Passed(module.net.encoder.layers, lambda: masked.training_step(batch, 0))
    frames = (torch.arange(20) < torch.tensor([20, 12, 6])[:, None]) if passed.after[0][0].shape[1] == 20 else None
    want = passed.energies(rows_of(frames))
    readings, _ = read(masked, [batch], "net.encoder.layers.*")
    close_to(readings, want)
    close_to(measure_path(module.net, [batch], ENERGIES, layers="encoder.layers.*"), want)


def queries_beside_as_many_padded_pixels():
    """The decoder is given the padding of what the encoder reads, and none of its own."""
    torch.manual_seed(0)
    net = nn.Transformer(WIDTH, 2, 3, 3, 12, dropout=0.0, batch_first=True)
    pixels, real = _texts()
    queries = points(20, seed=7).reshape(4, 5, WIDTH)

    class Detection(Loop):
        def training_step(self, batch, batch_idx):
            masks = {"src_key_padding_mask": ~real, "memory_key_padding_mask": ~real}
            return self.net(batch[0], batch[1], **masks).square().mean()

    module = Detection(net)
    for part, rows in (("encoder", rows_of(real)), ("decoder", None)):
        passed = Passed(getattr(net, part).layers, lambda: module.training_step((pixels, queries), 0))
        readings, _ = read(module, [(pixels, queries)], f"net.{part}.layers.*")
        close_to(readings, passed.energies(rows))


def padding_of_encoder_and_decoder():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 3, "num_heads": 2}
    net = T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0))
    sources = torch.arange(6) < torch.tensor([6, 3, 2, 5])[:, None]
    targets = torch.arange(6) < torch.tensor([2, 6, 4, 3])[:, None]
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, 20, (4, 6), generator=generator) for _ in range(2)]
    batch = {"input_ids": ids[0], "attention_mask": sources.long(), "labels": ids[1].masked_fill(~targets, -100)}
    batch |= {"decoder_input_ids": ids[1], "decoder_attention_mask": targets.long()}

    class Translation(Loop):
        def forward(self, **batch):
            return self.net(**batch)

        def training_step(self, batch, batch_idx):
            return self(**batch).loss

    module = Translation(net)
    for part, real in (("encoder", sources), ("decoder", targets)):
        passed = Passed(getattr(net, part).block, lambda: module.training_step(batch, 0))
        readings, _ = read(module, [batch], f"net.{part}.block.*")
        close_to(readings, passed.energies(rows_of(real)))
        measured = measure_path(module, [batch], ENERGIES, layers=f"net.{part}.block.*")
        close_to(measured, passed.energies(rows_of(real)))


def step_sizes_of_padded_texts():
    from transformers import BertConfig, BertModel

    step_sizes, ids = [], torch.randint(2, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([6, 2, 4, 3])
    for padded_to in (6, 24):
        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
        net = BertModel(BertConfig(vocab_size=20, **sizes, **none)).train()
        make_leaky(net, "encoder.layer.*")
        optimizer = torch.optim.SGD(net.parameters(), 0.0)
        StepSizeHook(net, every_n_steps=1, damping=1.0).attach(optimizer)
        real = torch.arange(padded_to) < lengths[:, None]
        padded = F.pad(ids, (0, padded_to - 6)).masked_fill(~real, 0)
        hidden = net(input_ids=padded, attention_mask=real.long()).last_hidden_state
        hidden[real].square().mean().backward()
        optimizer.step()
        step_sizes.append(net.leaky_steps.step_sizes)
    assert float((step_sizes[0] - 1 / 3).abs().max()) > 1e-3
    close(step_sizes[1], step_sizes[0])


# 6. Which axis is the width is not guessed silently.


class Wave(nn.Module):
    """(batch, channels, time)."""

    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        self.filter, self.norm = nn.Conv1d(WIDTH, 2 * WIDTH, 3, padding=1), norm(WIDTH)

    def forward(self, hidden):
        filtered, gate = self.filter(self.norm(hidden)).chunk(2, 1)
        return hidden + filtered.tanh() * gate.sigmoid()


def channels_before_time():
    batch, rows = points(8 * 20).reshape(8, WIDTH, 20), lambda hidden: hidden.transpose(1, 2).reshape(-1, WIDTH)
    module = Loop(nn.Sequential(Wave(), Wave(), Wave()))
    want = Passed(module.net, lambda: module(batch)).energies(rows)
    for layers in ("net.*", None):
        readings, said = read(module, [batch], layers)
        close_to(readings, want)
        assert not told(said, "width"), said
    leaky = make_leaky(module.net, "*")
    optimizer = torch.optim.SGD(leaky.parameters(), 0.0)
    StepSizeHook(leaky, every_n_steps=1, damping=1.0).attach(optimizer)
    leaky(batch).square().mean().backward()
    optimizer.step()
    told_layout = make_leaky(nn.Sequential(Wave(), Wave(), Wave()), "*")
    told_layout.load_state_dict({k: v for k, v in leaky.state_dict().items() if "step_sizes" not in k})
    optimizer = torch.optim.SGD(told_layout.parameters(), 0.0)
    StepSizeHook(told_layout, every_n_steps=1, damping=1.0, layout=Layout("nct")).attach(optimizer)
    told_layout(batch).square().mean().backward()
    optimizer.step()
    close(leaky.leaky_steps.step_sizes, told_layout.leaky_steps.step_sizes)


def sequences_before_the_batch():
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout=0.0, batch_first=False) for _ in range(3)]
    module = Loop(nn.Sequential(*layers))
    real = torch.arange(7) < torch.tensor([7, 3, 2, 5, 4])[:, None]
    batch = points(7 * 5).reshape(7, 5, WIDTH)
    readings, _ = read(module, [batch], "net.*")
    close_to(readings, Passed(module.net, lambda: module(batch)).energies())

    class Padded(Loop):
        def training_step(self, batch, batch_idx):
            return self.net(batch, src_key_padding_mask=~real).square().mean()

    module = Padded(nn.TransformerEncoder(layers[0], 3, enable_nested_tensor=False))
    passed = Passed(module.net.layers, lambda: module.training_step(batch, 0))
    readings, _ = read(module, [batch], "net.layers.*")
    close_to(readings, passed.energies(lambda hidden: hidden.transpose(0, 1)[real]))


def attention_that_permutes_inside_of_a_block():
    class Permuting(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.norm = nn.MultiheadAttention(WIDTH, 2), nn.LayerNorm(WIDTH)

        def forward(self, hidden, key_padding_mask=None):
            inner = self.norm(hidden).transpose(0, 1)
            return hidden + self.attention(inner, inner, inner, key_padding_mask=key_padding_mask)[0].transpose(0, 1)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Permuting() for _ in range(3))

        def forward(self, hidden, key_padding_mask=None):
            for layer in self.layers:
                hidden = layer(hidden, key_padding_mask=key_padding_mask)
            return hidden

    for samples in (4, 5):
        tokens, real = _texts(samples)

        class Padded(Loop):
            def training_step(self, batch, batch_idx, real=real):
                return self.net(batch, key_padding_mask=~real).square().mean()

        module, monitor = Padded(Encoder()), EnergyMonitor("net.layers.*", list(ENERGIES), every_n_steps=1)
        said = fit(module, [tokens], monitor)
        passed = Passed(module.net.layers, lambda module=module, tokens=tokens: module.training_step(tokens, 0))
        assert "train" in monitor.readings, said
        if not told(said, "layout("):
            close_to(monitor.readings["train"], passed.energies(rows_of(real)))


class Mixer(nn.Module):
    """A residual of some modules, one after another."""

    def __init__(self, *modules):
        super().__init__()
        self.body = nn.Sequential(*modules)

    def forward(self, hidden):
        return hidden + self.body(hidden).tanh()


def axes_that_the_modules_inside_tell():
    w = WIDTH
    known = [
        (lambda: [nn.Conv1d(w, w, 1)], (4, w, 9), "nct"),  # points of a cloud
        (lambda: [nn.Conv1d(w, w, 1), nn.BatchNorm1d(w)], (4, w, 9), "nct"),
        (lambda: [nn.GroupNorm(2, w), nn.Conv1d(w, w, 3, padding=1)], (4, w, 9), "nct"),
        (lambda: [nn.BatchNorm1d(w)], (4, w, 9), "nct"),
        (lambda: [nn.LayerNorm(w), nn.Linear(w, w)], (4, 9, w), "ntc"),
        (lambda: [nn.Linear(w, 3 * w), nn.GELU(), nn.Linear(3 * w, w)], (4, 5, 7, w), "nhwc"),
        (lambda: [nn.Conv2d(w, w, 3, padding=1)], (4, w, 5, 7), "nchw"),
        (lambda: [nn.Conv3d(w, w, 3, padding=1), nn.BatchNorm3d(w)], (3, w, 4, 5, 3), "ncdhw"),  # video
        (lambda: [nn.LayerNorm(w), nn.Linear(w, w)], (3, 4, 5, 3, w), "ndhwc"),
        (lambda: [nn.InstanceNorm2d(w, affine=True), nn.Conv2d(w, w, 1)], (4, w, 5, 7), "nchw"),
        (lambda: [nn.ConvTranspose1d(w, w, 3, padding=1)], (4, w, 9), "nct"),
    ]
    for make, shape, axes in known:
        torch.manual_seed(0)
        net = nn.Sequential(*(Mixer(*make()) for _ in range(3))).eval()
        batch = torch.randn(shape)
        channel = axes.index("c")
        rows = lambda hidden, channel=channel: hidden.movedim(channel, -1).reshape(-1, WIDTH)  # noqa: E731
        want = Passed(net, lambda net=net, batch=batch: net(batch)).energies(rows)
        close_to(measure_path(net, [batch], ENERGIES, layers="*"), want)


def axes_that_nothing_tells():
    """An elementwise block, and one that contradicts itself: said once, with the layout that would change it."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, hidden):
            return hidden + (self.scale * hidden).tanh()

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.channels = nn.Linear(9, 9), nn.Conv1d(WIDTH, WIDTH, 1)

        def forward(self, hidden):
            return hidden + self.tokens(self.channels(hidden)).tanh()

    for kind in (Scale, Both):
        module, batch = Loop(nn.Sequential(kind(), kind(), kind())), points(4 * 9).reshape(4, WIDTH, 9)
        readings, said = read(module, [batch, batch], "net.*", ["cost_of_identity"])
        assert len(told(said, "layout(")) == 1, said
        default = Passed(module.net, lambda module=module, batch=batch: module(batch)).energies()
        other = Passed(module.net, lambda module=module, batch=batch: module(batch)).energies(
            lambda hidden: hidden.transpose(1, 2).reshape(-1, WIDTH)
        )
        taken = "ntc" if torch.allclose(readings["cost_of_identity"], default["cost_of_identity"], rtol=1e-4) else "nct"
        close(readings["cost_of_identity"], (default if taken == "ntc" else other)["cost_of_identity"])
        (text,) = told(said, "layout(")
        assert all(f"'{axes}'" in text or f'"{axes}"' in text for axes in ("ntc", "nct")), text
        readings, said = read(module, [batch], "net.*", ["cost_of_identity"], layout=Layout("nct"))
        close(readings["cost_of_identity"], other["cost_of_identity"])
        assert not told(said, "layout("), said
