"""Under an engine that calls as DeepSpeed's does, readings and step-sizes are those of a plain fit.

The engine is a double; `tests.gpu.deepspeed_check` runs the same cases on the real one.
"""

import pytest

from tests.gpu import deepspeed_check
from tests.gpu.deepspeed_check import CASES, checks_of, fit, strategy_of
from tests.others.deepspeed_double import deepspeed_double

pytestmark = pytest.mark.slow

ON_DOUBLE = [name for name in CASES if "CPU" not in name]  # it offloads nothing


@pytest.mark.parametrize("name", ON_DOUBLE)
def test_readings_and_step_sizes_are_those_of_a_plain_fit(name, monkeypatch):
    case = CASES[name]
    with deepspeed_double() as strategy_class:
        monkeypatch.setattr(deepspeed_check, "_on_cpu", lambda: strategy_class)
        found = fit(case, strategy_of(case, "cpu"), "cpu", 1)
    results = dict(checks_of(case, [found], fit(case, None, "cpu", 1)))
    assert results
    assert {check: wrong for check, wrong in results.items() if wrong} == {}
