"""Other people's loops: which tensor is the state, of a reading and of a leaky step."""

import copy
from functools import partial

import torch
from torch import nn

from lightning_leaky import EnergyMonitor, make_leaky, measure_path
from tests.others.loops import (
    ENERGIES,
    WIDTH,
    Loop,
    Passed,
    close,
    close_to,
    fit,
    points,
    read,
    right_or_refused,
    set_steps,
    unless_refused,
)

# 7. Which tensor is the state.


class Pair(nn.Module):
    """(hidden, residual), as the blocks of state-space models pass them on."""

    def __init__(self):
        super().__init__()
        self.norm, self.mixer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden, residual=None):
        residual = hidden if residual is None else hidden + residual
        return self.mixer(self.norm(residual)), residual


class Swapped(Pair):
    """(residual, hidden)."""

    def forward(self, residual, hidden):
        return super().forward(hidden, residual)[::-1]


class Stream(nn.Module):
    """The same function of their sum."""

    def __init__(self, pair):
        super().__init__()
        self.pair = [pair]

    def forward(self, stream):
        (pair,) = self.pair
        return stream + pair.mixer(pair.norm(stream))


class Mamba(nn.Module):
    def __init__(self, kind=Pair, how="position"):
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.how = nn.ModuleList(kind() for _ in range(4)), how

    def forward(self, start):
        hidden, residual = start, torch.zeros_like(start)
        for layer in self.layers:
            if self.how == "keyword":
                hidden, residual = layer(hidden=hidden, residual=residual)
            elif isinstance(layer, Swapped):
                residual, hidden = layer(residual, hidden)
            else:
                hidden, residual = layer(hidden, residual)
        return hidden + residual


def hidden_and_residual():
    batch = points()
    for net in (Mamba(), Mamba(how="keyword"), Mamba(Swapped)):
        clean = nn.Sequential(*map(Stream, net.layers))
        want = Passed(clean, lambda clean=clean: clean(batch)).energies()
        close(net(batch), clean(batch))
        readings, _ = read(Loop(net), [batch], "net.layers.*", state="sum")
        close_to(readings, want)
        for layers in ("layers.*", None):
            readings = unless_refused(partial(measure_path, net, [batch], ENERGIES, layers=layers), "state")
            if readings is not None:
                close_to(readings, want)
        monitor = EnergyMonitor("net.layers.*", list(ENERGIES), every_n_steps=1)
        right_or_refused(monitor, fit(Loop(net), [batch], monitor), want, "not read", "state")


def a_residual_that_begins_as_none():
    class Vision(Mamba):
        def forward(self, start):
            hidden, residual = start, None
            for layer in self.layers:
                hidden, residual = layer(hidden, residual)
            return hidden + residual

    batch, net = points(), Vision()
    clean = nn.Sequential(*map(Stream, net.layers))
    want = Passed(clean, lambda: clean(batch)).energies()
    for settings in ({"state": "sum"}, {}):
        monitor = EnergyMonitor("net.layers.*", list(ENERGIES), every_n_steps=1, **settings)
        right_or_refused(monitor, fit(Loop(net), [batch], monitor), want, "not read", "state")


def one_of_two_streams_touched_between_layers():
    """By dropout, say: then the other alone is handed on as it was."""

    class Touched(Mamba):
        def forward(self, start):
            hidden, residual = start, torch.zeros_like(start)
            for layer in self.layers:
                hidden, residual = layer(hidden, residual)
                hidden, residual = (hidden * 1.0, residual) if self.how == "hidden" else (hidden, residual * 1.0)
            return hidden + residual

    batch = points()
    for how in ("hidden", "residual"):
        net = Touched(how=how)
        clean = nn.Sequential(*map(Stream, net.layers))
        want = Passed(clean, lambda clean=clean: clean(batch)).energies()
        for settings in ({"state": "sum"}, {}):
            monitor = EnergyMonitor("net.layers.*", list(ENERGIES), every_n_steps=1, **settings)
            said = fit(Loop(net), [batch, batch], monitor)
            right_or_refused(monitor, said, want, "not read", "state")
            assert not settings or "train" in monitor.readings, said


class Positioned(nn.Module):
    """An encoder layer that adds positions, of the shape of its input, to queries and keys."""

    def __init__(self):
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.LayerNorm(WIDTH)

    def forward(self, src, pos=None):
        place = src if pos is None else src + pos
        return self.norm(src + self.attention(place, place, src)[0])


class Positions(nn.Module):
    def __init__(self, kind=Positioned, first=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.first = nn.ModuleList(kind() for _ in range(3)), first

    def forward(self, hidden):
        pos = points(hidden[0].numel() // WIDTH, seed=9).expand_as(hidden)
        for layer in self.layers:
            hidden = layer(pos, hidden) if self.first else layer(hidden, pos=pos)
        return hidden


class ContextFirst(Positioned):
    def forward(self, context, hidden):
        return super().forward(hidden, context)


def positions_of_the_shape_of_the_state():
    batch = points(20).reshape(4, 5, WIDTH)
    for net, state in ((Positions(), "src"), (Positions(ContextFirst, first=True), "hidden")):
        module = Loop(net)
        passed = Passed(net.layers, lambda net=net: net(batch))
        if net.first:  # what was kept first is the context
            passed.before = [[batch], *passed.after[:-1]]
        want = passed.energies()
        for settings in ({"state": state}, {}):
            for layers in ("net.layers.*", None):
                monitor = EnergyMonitor(layers, list(ENERGIES), every_n_steps=1, **settings)
                said = fit(module, [batch, batch], monitor)
                right_or_refused(monitor, said, want, "state" if layers else "no layers")
                assert not settings or "train" in monitor.readings, said


STEPS = [0.4, 0.3, 0.2, 0.1]


def leaky_by_hand(layers, start, step_sizes, effective_depth=0.0):
    """h ← (1 − ρL̃) h + ρL (block(h) − h), written down again."""
    hidden, number = start, len(layers)
    for layer, step in zip(layers, step_sizes, strict=True):
        hidden = (1 - step * effective_depth) * hidden + step * number * (layer(hidden) - hidden)
    return hidden


def leaky_steps_of_hidden_and_residual():
    batch = points()
    for make in (lambda: Mamba(), lambda: Mamba(how="keyword"), lambda: Mamba(Swapped)):
        want = leaky_by_hand([Stream(layer) for layer in make().layers], batch, STEPS)
        model = make_leaky(make(), "layers.*", state="sum")
        set_steps(model, STEPS)
        close(model(batch), want)
        model = unless_refused(lambda make=make: make_leaky(make(), "layers.*"), "state")
        if model is not None:
            set_steps(model, STEPS)
            outputs = unless_refused(partial(model, batch), "state")
            if outputs is not None:
                close(outputs, want)


def leaky_steps_beside_positions():
    batch, pos = points(20).reshape(4, 5, WIDTH), points(5, seed=9).expand(4, 5, WIDTH)
    for kind, first, state in ((Positioned, False, "src"), (ContextFirst, True, "hidden"), (Positioned, False, 0)):
        plain = Positions(kind, first)
        at = [lambda h, layer=layer: layer(pos, h) if first else layer(h, pos) for layer in plain.layers]  # noqa: B023
        want = leaky_by_hand(at, batch, [0.5, 0.3, 0.2], 1.5)
        model = make_leaky(copy.deepcopy(plain), "layers.*", 1.5, state=state)
        set_steps(model, [0.5, 0.3, 0.2])
        close(model(batch), want)
        model = make_leaky(copy.deepcopy(plain), "layers.*", 1.5)
        set_steps(model, [0.5, 0.3, 0.2])
        outputs = unless_refused(partial(model, batch), "state")
        if outputs is not None:
            close(outputs, want)
