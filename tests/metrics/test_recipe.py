"""Which sums a recipe asks for, and what it refuses."""

import pickle

import pytest
import torch

from lightning_leaky.metrics import QUANTITIES, Quantity, Recipe
from tests.metrics.own_records import GROWTH
from tests.metrics.paths import EVERYTHING, MOMENTA, both_signs

SHAPES = {
    "feature_products": (5, 13),
    "inner": (2, 2),
    "second_moment": (4, 4),
    "first_order": (3,),
    "features_momentum": (5, 4),
    "momentum_sums": (3,),
    "turns": (2,),
    "own_relative_distance": (2,),
    "own_growth": (2,),
}


@pytest.mark.parametrize(
    ("quantities", "names"),
    [
        (["kinetic_energy", "cost_of_identity"], ["feature_products", "inner"]),
        (["stable_rank"], ["second_moment"]),
        (["first_order"], ["first_order"]),
        (MOMENTA, ["first_order", "features_momentum", "momentum_sums"]),
        ([GROWTH], ["own_growth"]),
        (EVERYTHING, list(SHAPES)),
    ],
    ids=["energies", "spectrum", "gradients", "momenta", "own", "everything"],
)
def test_only_the_sums_that_are_needed_are_held(quantities, names):
    assert Recipe(quantities).state_shapes(width=4) == {name: SHAPES[name] for name in names}


def test_the_representation_alone_is_half_of_the_energies():
    assert Recipe(["cost_of_identity", "potential_energy"]).state_shapes(4) == {
        "feature_products": (5, 9),
        "inner": (1, 1),
    }


def test_features_say_how_wide_they_are():
    shapes = Recipe(EVERYTHING, feature_map=both_signs).state_shapes(width=4)
    assert shapes == SHAPES | {"feature_products": (9, 17), "features_momentum": (9, 4)}


def test_a_recipe_can_be_pickled_with_records_of_ones_own():
    recipe = Recipe(EVERYTHING, 2.0, feature_map=torch.relu)
    copied = pickle.loads(pickle.dumps(recipe))
    assert (copied, copied.records) == (recipe, recipe.records)


def test_a_recipe_can_be_pickled_with_a_record_of_this_package():
    copied = pickle.loads(pickle.dumps(Recipe([QUANTITIES["speed"], GROWTH])))
    assert copied.records == (QUANTITIES["speed"], GROWTH)


def test_a_quantity_of_another_shape_is_named():
    recipe = Recipe([Quantity("all_products", lambda sums: sums.products)])
    with pytest.raises(
        ValueError, match=r"`compute` of 'all_products' must return one number .* 3 layers.*\(3, 2, 2\)"
    ):
        recipe.values({"products": torch.ones(3, 2, 2)}, torch.ones(3) / 3)


@pytest.mark.parametrize("quantities", [["speed"], ["stable_rank"]])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"effective_depth": -1.0}, "`effective_depth`.*got -1.0"),
        ({"effective_depth": float("nan")}, "`effective_depth`.*got nan"),
        ({"loss_reduction": "none"}, '`loss_reduction` must be "mean" or "sum", got \'none\''),
        ({"loss_reduction": None}, "`loss_reduction` .*got None"),
        ({"quantities": ["mass"]}, "`quantities` .*got 'mass'"),
    ],
    ids=["depth", "nan", "reduction", "no reduction", "quantity"],
)
def test_bad_arguments_are_named_at_once(quantities, changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**({"quantities": quantities} | changes))
