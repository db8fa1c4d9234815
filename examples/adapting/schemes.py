"""Ways of adapting a network without a leak: its step-sizes or its learning rates, by a rule or upside down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from examples.layers.networks import ConvolutionBlock, DenseBlock, MixerBlock, Network, TransformerBlock
from examples.layers.training import adapted
from lightning_leaky import StepSizeHook, equidistant_step_sizes
from lightning_leaky.functional import RelativeDistanceRule, StepSizeRule, SwitchesRule, normalise_step_sizes
from lightning_leaky.paths.leaky_path import LeakyPath, find_leaky_path

STOP, WARMED_UP = 0.7, 0.05
"""Shares of the training after which nothing adapts: by default, and for what adapts in the warm-up only."""


@dataclass(frozen=True)
class OfRule:
    """A rule made from another one.

    Args:
        rule: The other rule.
    """

    rule: StepSizeRule

    def sums(self, previous: Tensor, current: Tensor) -> Tensor:
        """Sums of the other rule."""
        return self.rule.sums(previous, current)


class UpsideDown(OfRule):
    """A rule's reciprocal: what changes most gets the largest step-size."""

    def distances(self, sums: Tensor, step_sizes: Tensor, effective_depth: float) -> Tensor:
        """1/c_l."""
        return 1 / self.rule.distances(sums, step_sizes, effective_depth)


class AtEqualSteps(OfRule):
    """A rule for step-sizes that no block runs with: it takes those of the network, which are equal."""

    def distances(self, sums: Tensor, step_sizes: Tensor, effective_depth: float) -> Tensor:
        """c_l at ρ = 1/L."""
        return self.rule.distances(sums, torch.full_like(step_sizes, 1 / len(step_sizes)), effective_depth)


class WatchedBlocks(nn.Module):
    """Blocks with a buffer of step-sizes that they do not run with.

    Args:
        blocks: The blocks in running order.
    """

    step_sizes: Tensor

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        self.effective_depth = 0.0
        self.register_buffer("step_sizes", equidistant_step_sizes(len(self.layers)))


@dataclass(frozen=True)
class Scheme:
    """A way of adapting.

    Args:
        rule: What the step-sizes follow; ``None`` leaves them as they are.
        sets_rates: Whether a block's ρ_l L multiplies its learning rate, and not what it adds.
        keeps_function: Whether a block's last maps make up for a change of its step-size.
        start: Share of the training before the first adaptation.
        stop: Share of the training after the last one.
        every_n_steps: Optimizer steps between two of them.
        mesh: Step-sizes from the start, from the number of blocks; equidistant by default.
        factors: Of each block's last maps at the start, likewise; 1 by default.
    """

    rule: StepSizeRule | None = None
    sets_rates: bool = False
    keeps_function: bool = False
    start: float = 0.0
    stop: float = STOP
    every_n_steps: int = 10
    mesh: Callable[[int], Tensor] = equidistant_step_sizes
    factors: Callable[[int], Tensor] = torch.ones

    def begin(self, network: Network) -> LeakyPath:
        """Give a new network its steps.

        Args:
            network: It is changed in place.

        Returns:
            The path with its step-sizes.
        """
        scale_last_maps(network.blocks, self.factors(len(network.blocks)))
        if self.sets_rates or (self.rule is None and self.mesh == equidistant_step_sizes):
            return WatchedBlocks(network.blocks)
        steps = find_leaky_path(adapted(network))
        before = steps.step_sizes.clone()
        steps.step_sizes.copy_(self.mesh(len(before)))
        if self.keeps_function:
            keep_function(steps, before)
        return steps

    def attach(self, path: LeakyPath, optimizer: Optimizer, num_steps: int) -> None:
        """Adapt from now on.

        Args:
            path: As from `begin`.
            optimizer: That of the network, without a schedule so far.
            num_steps: Steps of the whole training.
        """
        if self.rule is None:
            return
        if self.sets_rates:
            set_rates(path, optimizer)
        start, stop = (max(1, round(share * num_steps)) for share in (self.start, self.stop))
        settings = {"every_n_steps": self.every_n_steps, "start_step": start, "stop_step": stop, "rule": self.rule}
        StepSizeHook(path, **settings).attach(optimizer)  # type: ignore[arg-type]
        if self.keeps_function:
            _keep_function_after_steps(path, optimizer)


def first_differs(gain: float, num_layers: int) -> Tensor:
    """Step-sizes with ρ_1 L as given, and the others equal."""
    step_sizes = torch.full((num_layers,), (1 - gain / num_layers) / (num_layers - 1), dtype=torch.float64)
    step_sizes[0] = gain / num_layers
    return step_sizes


def falling(num_layers: int) -> Tensor:
    """ρ_l ∝ 1/√l."""
    return normalise_step_sizes(torch.arange(1, num_layers + 1, dtype=torch.float64).rsqrt())


def falling_gains(num_layers: int) -> Tensor:
    """The gains ρ_l L of steps that fall."""
    return num_layers * falling(num_layers)


def small(num_layers: int) -> Tensor:
    """1/√(2L), as GPT-2 begins: two branches a block, and in the end a sum of length about one."""
    return torch.full((num_layers,), (2 * num_layers) ** -0.5)


def last_maps(block: nn.Module) -> Sequence[nn.Module]:
    """The maps at the ends of a block's branches: all that it adds is linear in them.

    The second branch of a block sees the sum of its input and what the first one adds, so in blocks with two branches
    a factor of these maps is not quite one of what the block adds. In blocks with one branch it is, exactly, unless an
    activation follows the sum.
    """
    if isinstance(block, TransformerBlock):
        return [block.attention.outputs, block.mlp[-1]]
    if isinstance(block, MixerBlock):
        return [block.tokens[-1], block.channels[-1]]
    if isinstance(block, (DenseBlock, ConvolutionBlock)):
        return [block.branch[-1]]
    raise TypeError(f"`block` must be one of examples.layers.networks, got {type(block).__name__}.")


@torch.no_grad()
def scale_last_maps(blocks: Iterable[nn.Module], factors: Tensor, optimizer: Optimizer | None = None) -> None:
    """Multiply the last maps of each block by a factor, and Adam's moments as the gradients change.

    Args:
        blocks: The blocks.
        factors: One for each.
        optimizer: Adam, if there is one.
    """
    for block, factor in zip(blocks, factors.tolist(), strict=True):
        for parameter in (one for last in last_maps(block) for one in last.parameters()):
            parameter.mul_(factor)
            moments = {} if optimizer is None else optimizer.state.get(parameter, {})
            if moments:
                moments["exp_avg"].div_(factor)
                moments["exp_avg_sq"].div_(factor**2)


def keep_function(path: LeakyPath, before: Tensor, optimizer: Optimizer | None = None) -> None:
    """Let the last maps of each block make up for a change of step-sizes, from those before to those of the path."""
    scale_last_maps(path.layers, before / path.step_sizes, optimizer)


def _keep_function_after_steps(path: LeakyPath, optimizer: Optimizer) -> None:
    """Follow the hook that adapts the step-sizes, which is called first."""
    known = path.step_sizes.clone()

    def after(optimizer: Optimizer, *_: object) -> None:
        if not torch.equal(known, path.step_sizes):
            keep_function(path, known, optimizer)
            known.copy_(path.step_sizes)

    optimizer.register_step_post_hook(after)


def set_rates(path: LeakyPath, optimizer: Optimizer) -> None:
    """Multiply the learning rate of each block by its ρ_l L at every step.

    Args:
        path: The blocks and their step-sizes.
        optimizer: Its only group is split. A schedule must set the learning rates anew after every step.
    """
    (rest,) = optimizer.param_groups
    of_blocks = [list(block.parameters()) for block in path.layers]
    held = {id(one) for parameters in of_blocks for one in parameters}
    rest["params"] = [one for one in rest["params"] if id(one) not in held]
    for parameters in of_blocks:
        optimizer.add_param_group({**rest, "params": parameters})

    def before(optimizer: Optimizer, *_: object) -> None:
        shares = path.step_sizes.tolist()
        for group, share in zip(optimizer.param_groups[1:], shares, strict=True):
            group["lr"] *= share * len(shares)

    optimizer.register_step_pre_hook(before)


_DISTANCE, _SWITCHES = RelativeDistanceRule(), SwitchesRule()
_UPSIDE_DOWN = UpsideDown(_DISTANCE)

EQUIDISTANT, PAPER, FALLING, SMALL = "equidistant", "relative distance", "falling", "small start"
SCHEMES = {
    EQUIDISTANT: Scheme(),
    PAPER: Scheme(_DISTANCE),
    "relative distance, kept": Scheme(_DISTANCE, keeps_function=True),
    "switches": Scheme(_SWITCHES),
    "switches, kept": Scheme(_SWITCHES, keeps_function=True),
    "upside down": Scheme(_UPSIDE_DOWN),
    "upside down, kept": Scheme(_UPSIDE_DOWN, keeps_function=True),
    "rates": Scheme(AtEqualSteps(_DISTANCE), sets_rates=True),
    "rates, upside down": Scheme(UpsideDown(AtEqualSteps(_DISTANCE)), sets_rates=True),
    "late": Scheme(_DISTANCE, start=0.5),
    "late, kept": Scheme(_DISTANCE, start=0.5, keeps_function=True),
    "early": Scheme(_DISTANCE, every_n_steps=1, stop=WARMED_UP),
    "early, upside down": Scheme(_UPSIDE_DOWN, every_n_steps=1, stop=WARMED_UP),
    "first small": Scheme(mesh=partial(first_differs, 0.1)),
    "first small, kept": Scheme(mesh=partial(first_differs, 0.1), keeps_function=True),
    FALLING: Scheme(mesh=falling),
    "falling start": Scheme(factors=falling_gains),
    SMALL: Scheme(factors=small),
    f"{SMALL}, early, upside down": Scheme(_UPSIDE_DOWN, every_n_steps=1, stop=WARMED_UP, factors=small),
}
"""Every scheme by name. *kept* is with a change of mesh that keeps the function."""

STARTED_SMALL = (SMALL, f"{SMALL}, early, upside down")
"""Whether what adapting does is what a good start does."""
FIXED = ("first small", "first small, kept", FALLING, "falling start", SMALL)
"""They adapt nothing. The first ones begin with what the paper's rule does to the first block, to ask what is wrong
with it; falling steps are a mesh such as the rule finds upside down, the same for every network; a start is one of the
last maps alone, at equal steps."""
