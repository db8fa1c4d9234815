"""Records: what a quantity is computed from, and how it is chosen."""

import pytest
import torch

from lightning_leaky.metrics import QUANTITIES, Quantity, Sums, records
from lightning_leaky.metrics.recipe import resolve_quantities
from lightning_leaky.metrics.records import STEP_SIZE
from tests.metrics.own_records import EFFECTIVE_RANK, GROWTH, OWN, growth_of, squares

# What each need declares, with the shape of a layer's part; of "representation" the products of A alone.
FIELDS = {
    "representation": {"products": (1, 1)},
    "squares": {"products": (2, 2)},
    "energies": {"products": (2, 2)},
    "turns": {"turns": (2,)},
    "spectrum": {"singular_values": (4,)},
    "gradients": {"first_order": (2,)},
    "parameters": {"first_order": (2,), "parameters": (3,)},
    "momenta": {"features_momentum_square": (), "momentum_representation": (), "momentum_square": ()},
    "own": {"own": (2,)},
}
FIELDS["weights"] = FIELDS["momenta"] | {"residual": ()}
EVERY_FIELD = {name: shape for fields in FIELDS.values() for name, shape in fields.items()}
PATH_TO_OWN = "tests.metrics.own_records.EFFECTIVE_RANK"


def sums_of(declared, elsewhere):
    """Positive numbers in the sums that are declared, and something else in all others."""
    torch.manual_seed(0)
    made = {name: torch.rand(3, *shape, dtype=torch.float64) + 1 for name, shape in declared.items()}
    others = {name: elsewhere(torch.zeros(3, *shape)) for name, shape in EVERY_FIELD.items() if name not in declared}
    return Sums(torch.ones(3) / 3, 2.0, **made, **others)


@pytest.mark.parametrize("record", [*QUANTITIES.values(), *OWN], ids=lambda record: record.key)
def test_a_record_touches_only_the_sums_that_it_declares(record):
    declared = FIELDS[record.needs]
    sums = sums_of(declared, lambda zeros: zeros + torch.nan)
    if record.needs == "squares":
        sums.products[:, 0, 1] = sums.products[:, 1, 0] = torch.nan
    values = record.compute(sums)
    assert values.shape == (3,)
    assert values.dtype == torch.float64
    assert values.isfinite().all()
    assert torch.equal(values, record.compute(sums_of(declared, lambda zeros: torch.empty(0))))


def test_keys_and_titles_are_unique():
    listed = [*records._RECORDS, STEP_SIZE]
    assert list(QUANTITIES) == [record.key for record in records._RECORDS]
    for of in (lambda record: record.key, lambda record: record.title):
        assert len(set(map(of, listed))) == len(listed) == 19
    for record in listed:
        assert len({summary.end for summary in record.summaries}) == len(record.summaries)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (list(reversed(QUANTITIES)), list(QUANTITIES.values())),
        (["speed", "speed", QUANTITIES["speed"]], [QUANTITIES["speed"]]),
        ([GROWTH, "speed", EFFECTIVE_RANK], [QUANTITIES["speed"], GROWTH, EFFECTIVE_RANK]),
        ([PATH_TO_OWN, GROWTH], [EFFECTIVE_RANK, GROWTH]),
        ([PATH_TO_OWN, EFFECTIVE_RANK], [EFFECTIVE_RANK]),
    ],
    ids=["order", "once", "own last", "import path", "import path once"],
)
def test_quantities_are_chosen_by_key_record_or_import_path(given, expected):
    assert resolve_quantities(given) == tuple(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("hamiltonian", "must be a list of names, got the string 'hamiltonian'"),
        ([], "must be chosen from .*got none"),
        (["speed", "mass"], "must be chosen from .*'speed'.*got 'mass'"),
        (["tests.metrics.own_records.MASS"], "must be chosen from .* import paths, got 'tests.*MASS'"),
        (["tests.metrics.own_records.least"], "must be chosen from .* import paths, got 'tests.*least'"),
        ([EFFECTIVE_RANK, Quantity("effective_rank", len)], "must have different keys, got .*rename"),
        (["speed", Quantity("speed", len)], "must have different keys, got .*rename"),
        ([3], "must be chosen from .*got 3"),
    ],
    ids=["string", "none", "unknown", "no such path", "path to another thing", "twice", "ours", "number"],
)
def test_bad_choices_are_named(given, message):
    with pytest.raises(ValueError, match=f"`quantities` {message}"):
        resolve_quantities(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", growth_of), "`key` must be a name"),
        (("val/speed", growth_of), "`key` must be a name without a slash, got 'val/speed'"),
        (("influence", growth_of, "own"), "`sums` must be given .*'influence' needs 'own'"),
        (("influence", growth_of, "energies", squares), "`sums` must be given .* nowhere else"),
    ],
    ids=["empty", "slash", "no sums", "needless sums"],
)
def test_a_record_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Quantity(*arguments)


def test_a_record_is_called_by_its_key_unless_it_has_a_title():
    assert (EFFECTIVE_RANK.title, GROWTH.title) == ("effective_rank", "growth of squares")
