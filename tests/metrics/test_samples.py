"""The N × N form and the choice between it and second moments."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_leaky.functional import KNorm
from lightning_leaky.metrics import segments
from lightning_leaky.metrics.path_reader import MOMENTA, QUANTITIES, PathReader, moments_in_bytes
from lightning_leaky.metrics.samples import PathSamples
from lightning_leaky.metrics.segments import SegmentReaders
from tests import references
from tests.metrics.cases import random_path

HALVES = (slice(0, 4), slice(4, None))
FREE = [name for name in QUANTITIES if name not in MOMENTA]


def samples_of(path, batches=HALVES):
    metric = PathSamples(path.num_layers, path.width, path.depth, k_norm=path.k_norm)
    for rows in batches:
        metric.update(path.previous(rows), path.current(rows), path.step_sizes)
    return metric


@pytest.mark.parametrize("num_samples", [40, 5])
@pytest.mark.parametrize("k_norm", [KNorm(), KNorm(gamma=0.3, activation="gelu"), KNorm(constant_column=False)])
def test_both_forms_agree_in_float32(num_samples, k_norm):
    """To 1e-6, with more samples than neurons and with fewer."""
    path = random_path(num_layers=4, num_samples=num_samples, width=12, k_norm=k_norm)
    path = path.map(lambda tensor: tensor.float())
    readings = []
    for form in ("moments", "samples"):
        reader = PathReader(4, 12, 2.0, QUANTITIES, k_norm, form=form)
        reader.update(path.previous(), path.current(), path.step_sizes, path.momenta(), path.weights)
        readings.append(reader.compute())
    for name, values in readings[0].quantities.items():
        torch.testing.assert_close(readings[1][name], values, rtol=1e-6, atol=1e-6 * float(values.abs().max()))


def hard_path(kind, num_samples=40, width=64):
    """Both ends of a layer, in float32, where sums of products cancel most."""
    generator = torch.Generator().manual_seed(0)
    A, noise = torch.randn(2, num_samples, width, generator=generator)
    if kind == "rank one":
        return A[:, :1] * A[:1], A[:, :1] * noise[:1]
    if kind == "equal samples":
        return A[:1].expand_as(A).clone(), noise[:1].expand_as(A).clone()
    if kind == "far from zero":
        return 1e3 + A, 1e3 + noise
    if kind == "hardly moving":
        return A, A + 1e-5 * noise
    if kind == "inside its features":  # V is a combination of leading singular vectors: 1/γ0 times below the rest
        features = torch.relu(A)
        return A, A + 0.1 * features @ (features.mT @ A) / num_samples
    return A * 10.0 ** -torch.arange(width).div(8), noise  # "falling": neurons from 1 to 1e-8


@pytest.mark.parametrize("num_samples", [40, 65])
@pytest.mark.parametrize(
    "kind", ["rank one", "equal samples", "far from zero", "hardly moving", "inside its features", "falling"]
)
def test_products_in_float32_keep_six_digits(kind, num_samples):
    previous, current = hard_path(kind, num_samples)
    metric = PathSamples(1, 64, 2.0)
    metric.update([previous], [current], torch.ones(1))
    assert metric.previous[0].dtype == torch.float32
    A, V = previous.double(), current.double() - previous.double()
    expected = {
        "cost_of_identity": references.cost_of_identity(A, KNorm()),
        "kinetic_energy": references.kinetic_energy(A, V, 2.0, KNorm()),
    }
    for name, reference in expected.items():
        torch.testing.assert_close(metric.compute()[name], reference.value, rtol=1e-6, atol=0)


def test_nothing_of_the_square_of_the_width_is_held():
    metric = samples_of(random_path(num_layers=2, num_samples=8, width=300))
    assert metric.in_bytes() == 2 * 8 * 2 * 300 * 8
    held = [tensor for states in metric.metric_state.values() for tensor in states]
    assert sum(tensor.numel() for tensor in held) * 8 == metric.in_bytes()
    metric.reset()
    assert metric.in_bytes() == 0


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


def test_nothing_of_the_square_of_the_width_is_formed():
    path = random_path(num_layers=2, num_samples=8, width=500)
    with Largest() as largest:
        metric = PathSamples(2, 500, 2.0, with_momenta=True)
        metric.update(path.previous(), path.current(), path.step_sizes, path.momenta())
        metric.compute()
    assert largest.entries <= 4 * 8 * 501 < 500 * 500


def test_half_precision_is_kept_in_float32():
    path = random_path().map(lambda tensor: tensor.bfloat16())
    assert samples_of(path).in_bytes() == 2 * 9 * 3 * 4 * 4


def test_layers_must_share_their_samples():
    path = random_path()
    ragged = [path.previous()[0], path.previous()[1][:5], path.previous()[2]]
    with pytest.raises(ValueError, match=r"`previous` must have one number of rows, got \[9, 5, 9\]"):
        PathSamples(3, 4, 2.0).update(ragged, ragged, path.step_sizes)


def test_momenta_must_be_given_where_they_are_read():
    path = random_path()
    with pytest.raises(ValueError, match="`momenta` must be given"):
        PathSamples(3, 4, 2.0, with_momenta=True).update(path.previous(), path.current(), path.step_sizes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_layer_spoils_its_own_entry_only(value):
    path, spoilt = random_path(num_layers=4), random_path(num_layers=4)
    spoilt.representations[1, 2, 3] = value
    expected = samples_of(path).compute()
    for name, found in samples_of(spoilt).compute().items():
        assert not found[[0, 1]].isfinite().any()
        torch.testing.assert_close(found[2:], expected[name][2:], rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100, 2.0**120])
def test_energies_do_not_depend_on_the_scale_of_float32_samples(scale):
    """Not where their squares, or the sum of them all, are beyond float32, either: K and γ scale with them."""
    torch.manual_seed(0)
    start, end = torch.rand(2, 64, 128) + 0.5
    found = []
    for factor in (1.0, scale):
        metric = PathSamples(1, 128, 2.0, with_spectrum=False, k_norm=KNorm(constant_column=False))
        metric.update([factor * start], [factor * (start + end)], torch.ones(1))
        found.append(metric.compute())
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=0)


# The choice.


@pytest.mark.parametrize(
    ("quantities", "entries"),
    [
        (["cost_of_identity"], 5 * 5 + 2 * 5 * 4),
        (["stable_rank"], 16),
        (["hamiltonian"], 5 * 4),
        (QUANTITIES, 65 + 16 + 20),
    ],
)
def test_moments_take_the_memory_that_the_formula_says(quantities, entries):
    reader = PathReader(3, 4, 2.0, quantities)
    held = sum(
        state.nbytes
        for metric in (reader.energies, reader.spectrum, reader.momenta)
        if metric is not None
        for state in metric.metric_state.values()
    )
    assert moments_in_bytes(3, 4, quantities) == 8 * 3 * entries
    # Besides the moments a few numbers a layer: inner products, traces and counts.
    assert 0 <= held - 8 * 3 * entries <= 8 * 3 * 8


@pytest.mark.parametrize(
    ("form", "limit", "expected"),
    [("auto", 2**30, "auto"), ("auto", 100, "samples"), ("moments", 100, "moments"), ("samples", 2**30, "samples")],
)
def test_the_form_is_what_fits_unless_it_is_forced(monkeypatch, form, limit, expected):
    monkeypatch.setattr(segments, "MEMORY_LIMIT", limit)
    assert SegmentReaders([(4, 3)], 2.0, FREE, form=form).form == expected


def test_a_wide_network_is_read_without_its_moments():
    """w = 8192, 48 layers: second moments would take more than 70 GiB."""
    readers = SegmentReaders([(8192, 48)], 0.0, ["cost_of_identity", "kinetic_energy"])
    assert readers.form == "samples"
    assert readers.moments_in_bytes > 70 * 2**30


@pytest.mark.parametrize(
    ("quantities", "limit", "dtype", "expected"),
    [
        # Of each row 2 · 3 · 4 · 8 = 192 bytes in float64, half of it in float32: 5 rows, 4 of which come first.
        (FREE, 1000, torch.float64, [5, 1, 0]),
        (FREE, 1000, torch.float32, [10, 6, 2, 0]),
        (FREE, 1000, torch.bfloat16, [10, 6, 2, 0]),  # kept in float32
        (FREE, 1, torch.float64, [1, 0]),
        # 288 bytes: a batch with momenta is kept whole, if there is a place for one row of it.
        (MOMENTA, 1200, torch.float64, [None, 0]),
        (MOMENTA, 1153, torch.float64, [None, 0]),
        (MOMENTA, 1440, torch.float64, [None, None, 0]),
    ],
)
def test_there_is_room_until_the_samples_fill_it(monkeypatch, quantities, limit, dtype, expected):
    monkeypatch.setattr(segments, "MEMORY_LIMIT", limit)
    path = random_path(num_samples=4)
    previous, current = (list(matrices.to(dtype)) for matrices in (path.previous(), path.current()))
    readers = SegmentReaders([(4, 3)], 2.0, quantities, form="samples")
    assert readers.room(dtype) == expected[0]
    rooms = []
    for _ in expected[1:]:
        readers.update(previous, current, path.step_sizes, current)
        rooms.append(readers.room(dtype))
    assert rooms == expected[1:]
    readers.reset()
    assert readers.room(dtype) == expected[0]


def test_second_moments_always_have_room(monkeypatch):
    monkeypatch.setattr(segments, "MEMORY_LIMIT", 1)
    assert SegmentReaders([(4, 3)], 2.0, FREE, form="moments").room(torch.float32) is None


# Segments.


@pytest.mark.parametrize("form", ["moments", "samples"])
def test_segments_are_read_each_by_itself_and_joined(form):
    first, second = random_path(num_layers=2, width=3), random_path(num_layers=3, width=5, seed=1)
    rho = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)
    readers = SegmentReaders([(3, 2), (5, 3)], 2.0, FREE, form=form)
    readers.update([*first.previous(), *second.previous()], [*first.current(), *second.current()], rho)
    readings = readers.compute(list("abcde"))
    assert readings.segments == (2, 3)
    assert readings.names == tuple("abcde")
    assert torch.equal(readings.step_sizes, rho)
    for path, part, own_rho in zip((first, second), readings.split(), rho.split([2, 3]), strict=True):
        reader = PathReader(path.num_layers, path.width, 2.0, FREE)
        reader.update(path.previous(), path.current(), own_rho)
        for name, values in reader.compute().quantities.items():
            torch.testing.assert_close(part[name], values, rtol=1e-9, atol=1e-9)
        assert torch.equal(part.step_sizes, own_rho)
    sums = readings.summaries()
    assert set(sums) == {
        f"{name}/segment_{number}/{kind}"
        for number in (1, 2)
        for name, kind in (
            ("cost_of_identity", "min"),
            ("speed", "path_length"),
            *(("energy_hamiltonian", f"bottleneck_rank{end}") for end in ("", "_min", "_max")),
            ("energy_hamiltonian", "spread"),
        )
    }
    assert sums["cost_of_identity/segment_2/min"] == readings["cost_of_identity"][2:].min()
    torch.testing.assert_close(sums["speed/segment_1/path_length"], (rho[:2] * readings["speed"][:2]).sum())
    assert "cost_of_identity/layer_05" in readings.scalars()
    assert [line.split()[:2] for line in readings.table(["speed"]).splitlines()[1:]] == [
        [str(index + 1), name] for index, name in enumerate("abcde")
    ]


def test_a_form_must_be_known():
    with pytest.raises(ValueError, match="`form` must be"):
        segments.check_form("kernel")
