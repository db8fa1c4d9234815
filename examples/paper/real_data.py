"""Real data: leaky nets, a plain ResNet and a fully-connected net, each tuned with the same budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn import datasets
from torch import Generator, Tensor
from torch.nn import functional as F

from examples.paper.drawing import colour, label_panels, panels
from examples.paper.statistics import paired, summary
from examples.paper.study import RUNS, Rows, Study
from examples.subclass import FullyConnected
from lightning_leaky import DigitsDataModule, LeakyResNet, StepSizeHook
from lightning_leaky.module import RegularizedNetwork

EPOCHS = {"digits": 40, "digits_8x8": 60, "breast_cancer": 100, "wine": 150, "diabetes": 100}
"""Data sets, and how long to train on each: 300 to 1200 steps."""
METHODS = {
    "fully_connected": "fully-connected",
    "resnet": "ResNet (L̃ = 0)",
    "equidistant": "leaky, equidistant",
    "irregular": "leaky, irregular",
    "relative_distance": "leaky, paper's rule",
    "switches": "leaky, switches (ours)",
}
"""Methods as figures call them. Leaky nets go by their step-sizes: a scheme, or a rule of `StepSizeHook`."""
FIXED_DEPTHS = {"fully_connected": math.inf, "resnet": 0.0}
"""L̃ where it is not drawn."""
BASELINE = "equidistant"
NUM_SEEDS = 10
NUM_TRIALS = 12
BATCH_SIZE = 100
DEPTHS = (1.0, 3.0, 7.0)
LEARNING_RATES = (3e-4, 3e-2)
WEIGHT_DECAYS = (1e-4, 1.0)


@dataclass(frozen=True)
class Setting:
    """One trial of one method's search.

    Args:
        data: Name of the data set.
        method: One of `METHODS`.
        seed: Seed of the split, of the search, of the starting weights and of the order of the batches.
        trial: Number of the trial within the search.
        effective_depth: L̃; 0 is the plain ResNet, and infinity the fully-connected net.
        learning_rate: Adam's, at the start.
        weight_decay: λ.
        num_epochs: How long to train.
        width: w.
        num_layers: L.
    """

    data: str
    method: str
    seed: int
    trial: int
    effective_depth: float
    learning_rate: float
    weight_decay: float
    num_epochs: int
    width: int = 64
    num_layers: int = 10


class Split(NamedTuple):
    """Inputs, in rows, and targets: classes, or one column of numbers."""

    inputs: Tensor
    targets: Tensor


Data = dict[str, Split]
"""The splits ``train``, ``val`` and ``test``."""
Watch = Callable[[int, RegularizedNetwork], None]
"""Called with the number of epochs so far and the network."""


def settings(reduced: bool) -> Sequence[Setting]:
    """Every trial of every search.

    Each seed is an experiment of its own, tuning included: it splits the data, draws its trials, trains them all, and
    of these the one best on its validation split counts, with its error on its test split. So no test sample plays a
    part in a choice, and the intervals over seeds hold the luck of the search too. One seed comes after another, so
    that what there is is always paired.
    """
    epochs = {"breast_cancer": 2, "wine": 2, "diabetes": 2} if reduced else EPOCHS
    num_seeds, num_trials = (2, 2) if reduced else (NUM_SEEDS, NUM_TRIALS)
    return [
        Setting(data, method, seed, trial, *drawn, num_epochs)
        for seed in range(num_seeds)
        for data, num_epochs in epochs.items()
        for method in METHODS
        for trial, drawn in enumerate(trials(method, seed, num_trials))
    ]


def trials(method: str, seed: int, number: int) -> list[tuple[float, float, float]]:
    """L̃, learning rate and λ of each trial of a search.

    A random search in a Latin hypercube: of every range each part of equal size, on a log scale, is tried once. All
    methods of a seed try the same learning rates and λ, and all leaky nets the same L̃.
    """
    generator = Generator().manual_seed(seed)
    strata = torch.stack([torch.randperm(number, generator=generator) for _ in range(3)], 1)
    points = (strata + torch.rand(strata.shape, generator=generator)) / number
    return [
        (
            FIXED_DEPTHS.get(method, DEPTHS[int(depth * len(DEPTHS))]),
            _log_scaled(rate, LEARNING_RATES),
            _log_scaled(decay, WEIGHT_DECAYS),
        )
        for depth, rate, decay in points.tolist()
    ]


def _log_scaled(point: float, bounds: tuple[float, float]) -> float:
    """A point of [0, 1] between two bounds on a log scale, in two digits so that names and tables tell all of it."""
    low, high = bounds
    return float(f"{low * (high / low) ** point:.2g}")


@lru_cache(maxsize=1)
def data_of(name: str, seed: int) -> Data:
    """The splits of a data set, inputs and real targets standardised by the training split.

    The last one is kept: the digits take as long to read as to train on for ten epochs.
    """
    if name == "digits":
        return _digits(seed)
    load = {
        "digits_8x8": datasets.load_digits,
        "breast_cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
        "diabetes": datasets.load_diabetes,
    }[name]
    inputs, targets = (torch.as_tensor(array) for array in load(return_X_y=True))
    order = torch.randperm(len(inputs), generator=Generator().manual_seed(seed))
    num_held_out = len(order) // 5
    num_train = len(order) - 2 * num_held_out
    inputs = _standardised(inputs[order].float(), num_train)
    targets = targets[order].long() if is_classes(name) else _standardised(targets[order].float()[:, None], num_train)
    sizes = [num_train, num_held_out, num_held_out]
    parts = zip(torch.split(inputs, sizes), torch.split(targets, sizes), strict=True)
    return {split: Split(*part) for split, part in zip(("train", "val", "test"), parts, strict=True)}


def is_classes(name: str) -> bool:
    """Whether a data set's targets are classes."""
    return name != "diabetes"


def _digits(seed: int) -> Data:
    """The 5,000 digits: 3,000 for training, 1,000 for validation, 1,000 for the test."""
    data = DigitsDataModule(batch_size=None, seed=seed)
    data.setup()
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    return {split: Split(*next(iter(loader))) for split, loader in loaders.items()}


def _standardised(values: Tensor, num_train: int) -> Tensor:
    """Columns of mean 0 and deviation 1 over the training rows; pixels that are always black stay 0."""
    train = values[:num_train]
    deviation = train.std(0)
    return (values - train.mean(0)) / torch.where(deviation > 0, deviation, 1.0)


def network_of(setting: Setting, data: Data) -> FullyConnected | LeakyResNet:
    """The network before training."""
    torch.manual_seed(setting.seed)
    inputs, targets = data["train"]
    num_outputs = int(targets.max()) + 1 if is_classes(setting.data) else targets.shape[1]
    sizes = (inputs.shape[1], num_outputs, setting.width, setting.num_layers)
    if setting.method == "fully_connected":
        return FullyConnected(*sizes)
    return LeakyResNet(
        *sizes,
        effective_depth=setting.effective_depth,
        step_sizes="irregular" if setting.method == "irregular" else "equidistant",
    )


def cost(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of classes, squared error of numbers; a mean over samples."""
    if targets.is_floating_point():
        return (outputs - targets).square().sum(-1).mean()
    return F.cross_entropy(outputs, targets)


def train(setting: Setting, data: Data, watch: Watch = lambda epoch, network: None) -> RegularizedNetwork:
    """Train a network with Adam, in mini-batches, on the cost plus λ times the network's L2 term."""
    network = network_of(setting, data)
    num_batches = math.ceil(len(data["train"].inputs) / BATCH_SIZE)
    num_steps = setting.num_epochs * num_batches
    optimizer = torch.optim.Adam(network.parameters(), lr=setting.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps, setting.learning_rate / 100)
    hook = hook_of(setting, network, num_steps)
    if hook is not None:
        hook.attach(optimizer)
    generator = Generator().manual_seed(setting.seed)
    watch(0, network)
    for epoch in range(1, setting.num_epochs + 1):
        for inputs, targets in _batches(data["train"], num_batches, generator):
            optimizer.zero_grad()
            loss = cost(network(inputs), targets) + setting.weight_decay * network.regularizer()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        watch(epoch, network)
    return network


def hook_of(setting: Setting, network: FullyConnected | LeakyResNet, num_steps: int) -> StepSizeHook | None:
    """The hook of an adaptive rule as the package sets it; it stops at 70 %: weights settle on a fixed mesh."""
    if setting.method in ("fully_connected", "resnet", "equidistant", "irregular"):
        return None
    return StepSizeHook(network, stop_step=max(1, int(0.7 * num_steps)), rule=setting.method)


def _batches(split: Split, number: int, generator: Generator) -> list[tuple[Tensor, Tensor]]:
    """Mini-batches in a new order, all of nearly the same size."""
    order = torch.randperm(len(split.inputs), generator=generator)
    return [(split.inputs[rows], split.targets[rows]) for rows in order.tensor_split(number)]


@torch.no_grad()
def error(network: RegularizedNetwork, split: Split) -> float:
    """Share of samples in the wrong class, or mean squared error: 1 is that of the mean of the training targets."""
    outputs = network(split.inputs)
    if split.targets.is_floating_point():
        return float(cost(outputs, split.targets))
    return float((outputs.argmax(-1) != split.targets).float().mean())


def measure(setting: Setting) -> dict[str, Rows]:
    """Train, and read the errors. The validation cost decides between trials that err equally often."""
    data = data_of(setting.data, setting.seed)
    network = train(setting, data)
    found = {f"{split}_error": error(network, rows) for split, rows in data.items()}
    with torch.no_grad():
        found["val_cost"] = float(cost(network(data["val"].inputs), data["val"].targets))
    return {RUNS: [found]}


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """Trials of the searches that are complete."""
    num_trials = runs.groupby(["data", "method", "seed"])["trial"].transform("count")
    return runs[num_trials == num_trials.max()]


def chosen(runs: pd.DataFrame) -> pd.DataFrame:
    """Of every search the trial with the least validation error; among equals, with the least validation cost."""
    return runs.sort_values(["val_error", "val_cost"]).groupby(["data", "method", "seed"]).head(1)


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """Test errors less those of equidistant steps with the same seed, which is the same split."""
    baseline = runs[runs["method"] == BASELINE]
    groups = runs[runs["method"] != BASELINE].groupby(["data", "method"])
    rows = [(*key, *paired(group, baseline, ["data", "seed"], "test_error")) for key, group in groups]
    return pd.DataFrame(rows, columns=["data", "method", "n", "mean", "half"])


def same_trials(runs: pd.DataFrame) -> pd.DataFrame:
    """Leaky nets at the same hyper-parameters: test errors of each seed, means over all trials of its search."""
    leaky = runs[~runs["method"].isin(FIXED_DEPTHS)]
    return leaky.groupby(["data", "method", "seed"], as_index=False)["test_error"].mean()


def figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Errors and their paired differences, one column a data set."""
    runs = chosen(finished(tables[RUNS]))
    means, minus_baseline = summary(runs, ["data", "method"], "test_error"), differences(runs)
    names = [name for name in EPOCHS if name in set(runs["data"])]
    figure, axes = panels(len(names), rows=2, width=2.5, height=2.4, sharey=True)
    for ax, below, name in zip(axes, axes[len(names) :], names, strict=False):
        _draw_methods(ax, means[means["data"] == name], runs[runs["data"] == name])
        _draw_methods(below, minus_baseline[minus_baseline["data"] == name])
        below.axvline(0, color="grey", linewidth=1)
        ax.set_xlabel("test error (%)" if is_classes(name) else "test mean squared error")
        below.set_xlabel("minus equidistant (points)" if is_classes(name) else "minus equidistant")
    label_panels(axes, [name.replace("_", " ") for name in names])
    axes[0].set_yticks(range(len(METHODS)), list(METHODS.values()))
    axes[0].set_ylim(len(METHODS) - 0.5, -0.5)
    return {"real_data": figure}


def _draw_methods(ax: Axes, means: pd.DataFrame, seeds: pd.DataFrame | None = None) -> None:
    """Means and intervals of a data set's methods, one a line; behind them single seeds."""
    rows = {method: row for row, method in enumerate(METHODS)}
    scale = unit(means["data"].iloc[0])
    if seeds is not None:
        ax.plot(scale * seeds["test_error"], seeds["method"].map(rows), "o", color="grey", markersize=3, alpha=0.4)
    for method, mean, half in zip(means["method"], means["mean"], means["half"], strict=True):
        y = rows[method]
        ax.errorbar(scale * mean, y, xerr=scale * half, marker="o", markersize=4, capsize=2, color=colour(y))


def unit(name: str) -> float:
    """Shares are shown in per cent."""
    return 100.0 if is_classes(name) else 1.0


def tables(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """How the methods did, and what each search chose."""
    complete = finished(tables[RUNS])
    runs = chosen(complete)
    errors = summary(runs, ["data", "method"], "test_error")
    columns = {
        "test error": errors,
        "minus equidistant": differences(runs),
        "minus equidistant, same trials": differences(same_trials(complete)),
    }
    table = errors[["data", "method", "n"]]
    for name, found in columns.items():
        table = table.merge(
            found.assign(**{name: found.apply(_interval, axis=1)})[["data", "method", name]], how="left"
        )
    choices = runs.groupby(["data", "method"]).apply(_choices).reset_index()
    return {"real_data": _in_order(table.fillna("")), "real_data_chosen": _in_order(choices)}


def _interval(row: pd.Series[float]) -> str:
    """Mean and half width of the 95 % interval of one line."""
    digits = ".2f" if is_classes(str(row["data"])) else ".3f"
    scale, ending = unit(str(row["data"])), " %" if is_classes(str(row["data"])) else ""
    return f"{scale * row['mean']:{digits}} ± {scale * row['half']:{digits}}{ending}"


def _choices(runs: pd.DataFrame) -> pd.Series[str]:
    """What the searches of one method chose: how often each L̃, and medians with the least and the largest."""
    depths = runs["effective_depth"].value_counts().sort_index()
    found = {"L̃ (times)": ", ".join(f"{depth:g} ({count})" for depth, count in depths.items())}
    for name, column in (("learning rate", runs["learning_rate"]), ("λ", runs["weight_decay"])):
        found[name] = f"{column.median():.2g} ({column.min():g} to {column.max():g})"
    return pd.Series(found)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Lines in the order of data sets and methods, under the methods' names."""
    orders = {"data": list(EPOCHS), "method": list(METHODS)}
    table = table.sort_values(["data", "method"], key=lambda column: column.map(orders[str(column.name)].index))
    return table.assign(method=table["method"].map(METHODS))


STUDY = Study("real_data", settings, measure, figures, tables)
