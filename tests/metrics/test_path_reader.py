"""The reader of any choice of quantities, in every form: exact over any batches."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_leaky.metrics import PathReader, Recipe, path_reader
from lightning_leaky.metrics.recipe import resolve_quantities
from tests.metrics.own_records import EFFECTIVE_RANK, GROWTH, OWN
from tests.metrics.paths import (
    EVERYTHING,
    HALVES,
    MEASURES,
    MOMENTA,
    QUANTITIES,
    WITHOUT_MOMENTA,
    assert_by_formula,
    assert_same_reading,
    both_signs,
    expected_of,
    paths,
    paths_in_batches,
    random_path,
    references_of,
)

ARRIVING = [key for key, record in QUANTITIES.items() if record.needs in ("squares", "energies")]
FORMS = ("moments", "samples", "auto")
every_form = pytest.mark.parametrize("form", FORMS)
both_reductions = pytest.mark.parametrize("reduction", ["mean", "sum"])


@every_form
@both_reductions
@settings(max_examples=60)
@given(drawn=paths_in_batches(), chosen=st.sets(st.sampled_from(EVERYTHING), min_size=1))
def test_any_choice_over_any_batches_equals_functions_and_formulas(form, reduction, drawn, chosen):
    path, batches = drawn
    readings = path.read(chosen, form, reduction, batches)
    assert list(readings.quantities) == [record.key for record in resolve_quantities(list(chosen))]
    assert all(values.shape == (path.num_layers,) for values in readings.quantities.values())
    assert_same_reading(readings.quantities, {key: expected_of(path, reduction)[key] for key in readings.quantities})
    known = {key: values for key, values in readings.quantities.items() if key in QUANTITIES}
    assert_by_formula(known, references_of(path, reduction))
    assert torch.equal(readings.step_sizes, path.step_sizes)


@every_form
def test_records_of_ones_own_are_read_beside_the_others(form):
    """Over batches, one of which turns the form "auto" to sums: neither is a mean of the values of batches."""
    path = random_path(num_samples=9, width=6)
    readings = path.read([GROWTH, "speed", EFFECTIVE_RANK], form, batches=HALVES)
    assert list(readings.quantities) == ["speed", "growth", "effective_rank"]
    assert readings.own == (GROWTH, EFFECTIVE_RANK)
    assert_same_reading(readings.quantities, {key: expected_of(path)[key] for key in readings.quantities})
    assert float(readings.summaries()["effective_rank/min"]) == float(readings["effective_rank"].min())


@every_form
@pytest.mark.parametrize("num_samples", [3, 9, 14], ids=["N<w", "w<N<d", "d<N"])
def test_features_of_another_width_are_read(form, num_samples):
    path = random_path(num_samples=num_samples, width=5, feature_map=both_signs)
    assert path.weights.shape[-1] == 11
    readings = path.read(form=form, batches=(slice(0, 2), slice(2, None)))
    assert_same_reading(readings.quantities, {key: expected_of(path)[key] for key in QUANTITIES})
    plain = path._replace(feature_map=torch.relu).read(["cost_of_identity"], form)
    assert bool((readings["cost_of_identity"] < plain["cost_of_identity"]).all())


@both_reductions
@settings(max_examples=20)
@given(path=paths(measures=MEASURES[:1]))
def test_float32_batches_are_summed_in_float64(reduction, path):
    single = path.map(lambda tensor: tensor.float())._replace(weights=path.weights.float())
    found = []
    for dtype in (torch.float32, torch.float64):
        reader = path.reader(EVERYTHING, reduction=reduction)
        previous, current, rho, momenta = single.batch(reduction=reduction)
        reader.update(previous.to(dtype), current.to(dtype), rho, momenta.to(dtype))
        found.append(reader.compute(weights=single.weights.to(dtype), parameters=single.parameters).quantities)
    assert_same_reading(*found, rtol=1e-12)


@every_form
def test_a_reader_may_compute_between_batches_and_begin_anew(form):
    path, other = random_path(), random_path(seed=1)
    reader = other.feed(path.reader(EVERYTHING, form))
    reader.compute()
    reader.reset()
    assert reader.is_empty
    for rows in HALVES:
        reader.update(*path.batch(rows))
        reader.compute(weights=path.weights, parameters=path.parameters)
    assert not reader.is_empty
    assert_same_reading(reader.compute(weights=path.weights, parameters=path.parameters).quantities, expected_of(path))


@every_form
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda reader: pickle.loads(pickle.dumps(reader))])
def test_a_copy_goes_on_alone(form, copied):
    path = random_path(feature_map=both_signs)
    reader = path.feed(path.reader(EVERYTHING, form), HALVES[:1])
    found = path.feed(copied(reader), HALVES[1:]).compute(weights=path.weights, parameters=path.parameters)
    assert_same_reading(found.quantities, expected_of(path))
    first = path.read(EVERYTHING, form, batches=HALVES[:1])
    assert_same_reading(reader.compute(weights=path.weights, parameters=path.parameters).quantities, first.quantities)


@every_form
def test_inputs_are_detached_and_left_alone(form):
    path = random_path().map(lambda tensor: tensor.requires_grad_())
    path.weights.requires_grad_()
    before = [tensor.detach().clone() for tensor in path.batch()]
    rho = path.step_sizes.clone()
    reader = path.reader(EVERYTHING, form)
    reader.update(path.previous(), path.current(), rho, path.momenta())
    rho.copy_(rho.flip(0))
    readings = reader.compute(weights=path.weights, parameters=path.parameters)
    assert not any(values.requires_grad for values in readings.quantities.values())
    assert all(torch.equal(found, kept) for found, kept in zip(path.batch(), before, strict=True))
    assert torch.equal(readings.step_sizes, path.step_sizes)


@pytest.mark.parametrize("form", ["moments", "samples"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("spoilt", ["representations", "gradients", "weights"])
def test_a_diverged_layer_is_not_finite_and_its_neighbours_are_right(form, value, spoilt):
    path, diverged = random_path(num_layers=4), random_path(num_layers=4)
    getattr(diverged, spoilt)[1, 2, 3] = value
    expected = path.read(EVERYTHING, form)
    for name, found in diverged.read(EVERYTHING, form).quantities.items():
        layers = spoilt_layers(spoilt, name, form)
        assert not found[layers].isfinite().any()
        kept = [layer for layer in range(4) if layer not in layers]
        torch.testing.assert_close(found[kept], expected[name][kept], rtol=1e-12, atol=0)


def spoilt_layers(spoilt, name, form):
    """Layers that cannot be read. A_1 is where layer 2 is read, and where layer 1 arrives."""
    if spoilt == "weights":
        return [1] if name == "criticality_residual" else []
    if name == "pontryagin_residual":
        return []
    if name in ("first_order", "pontryagin_hamiltonian"):
        return [0, 1] if spoilt == "representations" else [1]
    if name in MOMENTA:
        return [] if spoilt == "representations" and name == "momentum_norm" else [1]
    arrives = name in ARRIVING or name in ("growth", "block_influence", "relative_distance")
    return [] if spoilt == "gradients" else [0, 1] if arrives else [1]


SPOILS = {
    "missing": (lambda matrices: matrices[:-1], "` must hold one matrix for each of 5 layers, got 4"),
    "surplus": (lambda matrices: [*matrices, matrices[0]], "` must hold one matrix for each of 5 layers, got 6"),
    "width": (lambda matrices: [*matrices[:-1], matrices[-1][:, 1:]], r"\[4\]` must be .*\(9, 4\).*got .*\(9, 3\)"),
    "samples": (lambda matrices: [*matrices[:-1], matrices[-1][1:]], r"\[4\]` must be .* got .* \([89], 4\)"),
    "dimensions": (lambda matrices: [*matrices[:-1], matrices[-1][None]], r"\[4\]` must be .* got .* \(1, 9, 4\)"),
    "integers": (lambda matrices: [matrices[0].int(), *matrices[1:]], r"\[2\]` must be .* got torch.int32"),
    "list": (lambda matrices: [[1.0], *matrices[1:]], r"\[2\]` must be a torch.Tensor, got list"),
    "scalar": (lambda matrices: [torch.ones(()), *matrices[1:]], r"\[2\]` must be"),
}


def groups_of(path):
    return [list(matrices) for matrices in (path.previous(), path.current(), path.momenta())]


@every_form
@pytest.mark.parametrize("position", [0, 1, 2], ids=["previous", "current", "momenta"])
@pytest.mark.parametrize(("spoil", "message"), SPOILS.values(), ids=SPOILS)
def test_bad_matrices_are_named_and_nothing_is_added(form, position, spoil, message):
    """Not to the segment before theirs, either."""
    first, path = random_path(num_layers=2, width=3), random_path()
    reader, weights = PathReader([(3, 2), (4, 3)], Recipe(list(QUANTITIES), 2.0), form), [*first.weights, *path.weights]

    def update(groups):
        previous, current, momenta = ([*own, *others] for own, others in zip(groups_of(first), groups, strict=True))
        reader.update(previous, current, torch.ones(5) / 5, momenta)

    groups = groups_of(path)
    update(groups)
    before = reader.compute(weights=weights)
    groups[position] = spoil(groups[position])
    name = ("previous", "current", "momenta")[position]
    if (name, message) == ("previous", SPOILS["samples"][1]):
        name = "current"  # which must have as many rows as `previous`
    with pytest.raises(ValueError, match=f"`{name}{message}"):
        update(groups)
    assert_same_reading(reader.compute(weights=weights).quantities, before.quantities, rtol=0)


@pytest.mark.parametrize(
    ("step_sizes", "message"),
    [(torch.ones(1), r"must have shape \(3,\)"), (torch.tensor([0.5, 0.5, 0.0]), "must be positive")],
)
def test_bad_step_sizes_are_named_and_nothing_is_added(step_sizes, message):
    path = random_path()
    reader = path.feed(path.reader(["speed"]))
    with pytest.raises(ValueError, match=f"`step_sizes` {message}"):
        reader.update(path.previous(), path.current(), step_sizes)
    assert_same_reading(reader.compute().quantities, {"speed": expected_of(path)["speed"]})
    assert torch.equal(reader.compute().step_sizes, path.step_sizes)


def test_layers_of_different_numbers_of_samples_are_summed():
    """As those of a padding mask for some layers only; each layer weighs its momenta by its own samples."""
    paths = [random_path(num_layers=1, num_samples=count, width=6, seed=count) for count in (2, 3)]
    reader = PathReader([(6, 2)], Recipe(EVERYTHING, 2.0), "auto")
    for rows in (slice(0, 1), slice(1, None)):
        each = [(path.previous(rows)[0], path.current(rows)[0], path.momenta(rows)[0]) for path in paths]
        previous, current, momenta = map(list, zip(*each, strict=True))
        reader.update(previous, current, torch.ones(2), momenta)
    found = reader.compute(weights=[path.weights[0] for path in paths])
    for index, path in enumerate(paths):
        alone = path._replace(step_sizes=torch.ones(1)).read(EVERYTHING)
        for name in found.quantities:
            torch.testing.assert_close(found[name][index], alone[name][0], rtol=1e-9, atol=0)


def test_samples_that_are_kept_must_be_as_many_in_all_layers():
    ragged = [matrix[:rows] for matrix, rows in zip(random_path().previous(), (9, 5, 9), strict=True)]
    reader = PathReader([(4, 3)], Recipe(["speed"]), "samples")
    with pytest.raises(ValueError, match=r"`previous`.*9, 5, 9"):
        reader.update(ragged, ragged, torch.ones(3))


# Momenta and weights.


@every_form
def test_momenta_and_weights_may_be_missing_where_they_are_not_read(form):
    path = random_path()
    reader = path.reader(WITHOUT_MOMENTA, form)
    reader.update(path.previous(), path.current(), path.step_sizes)
    assert list(reader.compute().quantities) == WITHOUT_MOMENTA
    missing = set(QUANTITIES) - set(path.feed(path.reader(form=form)).compute().quantities)
    assert missing == {"criticality_residual", "pontryagin_hamiltonian", "pontryagin_residual"}


@pytest.mark.parametrize("widths", [[], [(4, 0)], [(0, 3)]])
def test_segments_without_layers_or_neurons_are_refused(widths):
    with pytest.raises(ValueError, match="`widths` must hold widths and numbers of layers of at least 1"):
        PathReader(widths, Recipe(["speed"]))


def test_missing_momenta_are_named_with_what_wants_them():
    path = random_path()
    with pytest.raises(ValueError, match=r"`momenta` must be given to read \['hamiltonian'\]"):
        path.reader(["hamiltonian", "speed"]).update(path.previous(), path.current(), path.step_sizes)


@every_form
def test_weights_of_another_shape_are_named(form):
    path = random_path()
    with pytest.raises(ValueError, match=r"`weight` must have shape \(..., 4, 5\), got \(4, 4\)"):
        path.feed(path.reader(form=form)).compute(weights=path.weights[..., :-1])


# Memory.


@pytest.mark.parametrize(
    ("form", "limit", "expected"),
    [("auto", 2**30, "auto"), ("auto", 100, "samples"), ("moments", 100, "moments"), ("samples", 2**30, "samples")],
)
def test_the_form_is_what_fits_unless_it_is_forced(monkeypatch, form, limit, expected):
    monkeypatch.setattr(path_reader, "MEMORY_LIMIT", limit)
    assert random_path().reader(form=form).form == expected


def test_a_wide_network_is_read_without_its_moments():
    """w = 8192, 48 layers: second moments would take more than 70 GiB."""
    reader = PathReader([(8192, 48)], Recipe(["cost_of_identity", "kinetic_energy"]))
    assert reader.form == "samples"
    assert reader.moments_in_bytes > 70 * 2**30


@pytest.mark.parametrize(
    ("quantities", "limit", "dtype", "expected"),
    [
        # Of each row 2 · 3 · 4 · 8 = 192 bytes in float64, half of it in float32: 5 rows, 4 of which come first.
        (WITHOUT_MOMENTA, 1000, torch.float64, [5, 1, 0]),
        (WITHOUT_MOMENTA, 1000, torch.float32, [10, 6, 2, 0]),
        (WITHOUT_MOMENTA, 1000, torch.bfloat16, [10, 6, 2, 0]),  # kept in float32
        (WITHOUT_MOMENTA, 1, torch.float64, [1, 0]),
        # 288 bytes: a batch with momenta is kept whole, if there is a place for one row of it.
        (MOMENTA, 1200, torch.float64, [None, 0]),
        (MOMENTA, 1153, torch.float64, [None, 0]),
        (MOMENTA, 1440, torch.float64, [None, None, 0]),
    ],
)
def test_there_is_room_until_the_samples_fill_it(monkeypatch, quantities, limit, dtype, expected):
    monkeypatch.setattr(path_reader, "MEMORY_LIMIT", limit)
    path = random_path(num_samples=4).map(lambda tensor: tensor.to(dtype))
    reader = path.reader(quantities, "samples")
    rooms = (path.feed(reader).room(dtype) for _ in expected[1:])
    assert [reader.room(dtype), *rooms] == expected
    reader.reset()
    assert reader.room(dtype) == expected[0]


def test_sums_always_have_room(monkeypatch):
    monkeypatch.setattr(path_reader, "MEMORY_LIMIT", 1)
    assert random_path().reader(form="moments").room(torch.float32) is None


def test_where_a_device_has_no_float64_sums_and_samples_are_on_the_cpu():
    reader = random_path().reader()
    for device, expected in (("mps", "cpu"), ("meta", "meta")):
        reader.expect(torch.ones(3) / 3, torch.device(device), torch.float32)
        assert reader.stores[0].device.type == expected


def test_a_form_must_be_known():
    with pytest.raises(ValueError, match=r"`form` must be .*got 'kernel'"):
        random_path().reader(form="kernel")


# Segments.


@every_form
def test_segments_are_read_each_by_itself_and_joined(form):
    """Each with its own weights, parameters and step-sizes; one may keep its samples where another sums."""
    rho = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)
    first = random_path(num_layers=2, width=3)._replace(step_sizes=rho[:2])
    second = random_path(num_layers=3, width=12, seed=1)._replace(step_sizes=rho[2:])
    reader = PathReader([(3, 2), (12, 3)], Recipe(EVERYTHING, 2.0), form)
    previous, current, momenta = ([*a, *b] for a, b in zip(groups_of(first), groups_of(second), strict=True))
    reader.update(previous, current, rho, momenta)
    parameters = torch.cat([first.parameters, second.parameters])
    readings = reader.compute(list("abcde"), [*first.weights, *second.weights], parameters)
    assert (readings.segments, readings.names, readings.own) == ((2, 3), tuple("abcde"), OWN)
    assert torch.equal(readings.step_sizes, rho)
    for path, part in zip((first, second), readings.split(), strict=True):
        assert_same_reading(part.quantities, expected_of(path))
        assert torch.equal(part.step_sizes, path.step_sizes)
