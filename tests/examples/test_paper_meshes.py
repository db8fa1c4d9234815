"""What the tables of the step-size schemes say of a gap that is known."""

import numpy as np
import pandas as pd
import pytest

from examples.paper.meshes_figures import layers_of

CURVE = pd.Series([np.log(1 / layers) for layers in (5, 10, 20)], index=[5, 10, 20])


@pytest.mark.parametrize("layers", [5.0, 7.0, 10.0, 16.5, 20.0])
def test_errors_of_first_order_are_read_exactly(layers):
    assert layers_of(CURVE, np.log(1 / layers)) == f"{layers:.1f}"


@pytest.mark.parametrize(("layers", "said"), [(4.9, "< 5"), (20.1, "> 20")])
def test_outside_of_what_was_measured_only_a_bound_is_given(layers, said):
    assert layers_of(CURVE, np.log(1 / layers)) == said
