"""LayerRefiner in several processes: the layers, gradients and readings of one process, the same bits on all."""

import pytest
import torch

from tests.distributed import refinements
from tests.distributed.launch import launch

pytestmark = pytest.mark.slow

CASES = ["plain", "merging", "accumulated", "adapting", "unused", "manual"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds, that is no part of a distributed run."""
    return refinements.fits(0, 1, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory):
    """What each of several processes finds."""
    return launch(refinements.fits, request.param, tmp_path_factory.mktemp("together"))


def assert_same_run(found, expected):
    """The same meshes, estimates, gradients, readings and weights, step by step."""
    assert [len(mesh) for mesh in found["meshes"]] == [len(mesh) for mesh in expected["meshes"]]
    for name in ("meshes", "errors", "readings"):
        for one, other in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    for one, other in zip(found["gradients"], expected["gradients"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found["state"], expected["state"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_layers_change_as_in_one_process(together, alone, case):
    lengths = [len(mesh) for mesh in alone[case]["meshes"]]
    assert len(alone[case]["meshes"]) == 10
    assert len(set(lengths)) == 3
    for found in together:
        assert_same_run(found[case], alone[case])


@pytest.mark.parametrize("case", CASES)
def test_all_processes_have_the_same_bits(together, case):
    first = together[0][case]
    for found in together[1:]:
        for name in ("meshes", "errors", "readings"):
            assert all(map(torch.equal, found[case][name], first[name]))
        for one, other in zip(found[case]["gradients"], first["gradients"], strict=True):
            assert all(map(torch.equal, one, other))
        assert all(torch.equal(value, first["state"][name]) for name, value in found[case]["state"].items())


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """What each of two processes finds that hold a shard of every layer."""
    return launch(refinements.sharded_fits, 2, tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("case", ["plain", "merging", "accumulated", "adapting"])
def test_sharded_layers_change_as_in_one_process(shards, alone, case):
    for found in shards:
        assert_same_run(found[case], alone[case])
        assert len(found[case]["moments"]) == len(alone[case]["moments"])
        for one, other in zip(found[case]["moments"], alone[case]["moments"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-15)


def test_a_resumed_run_on_shards_is_the_one_that_was_not(shards):
    """To the same bits, though its layers were all there at the start."""
    for found in shards:
        again, whole = found["resumed"], found["plain"]
        assert len(again["meshes"]) == 8
        for name in ("meshes", "errors", "readings"):
            assert all(map(torch.equal, again[name], whole[name][2:]))
        assert all(torch.equal(value, whole["state"][name]) for name, value in again["state"].items())


def test_a_hook_on_shards_says_nothing_to_other_processes(shards):
    """It estimates, splits and merges as in one process, in float64, and layers move without a collective."""
    expected = refinements.hooked(0, 1)
    lengths = expected["lengths"]
    assert min(lengths[:7]) < 12
    assert lengths[7] == 2 * lengths[5]
    for found in (process["hooked"] for process in shards):
        assert found["lengths"] == lengths
        assert found["are_wrapped"]
        assert found["spoken"] == 0
        for one, other in zip(found["errors"], expected["errors"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=0)
        torch.testing.assert_close(found["state"], expected["state"], rtol=1e-9, atol=1e-12)


def test_shards_that_no_new_layer_can_have_are_refused(shards):
    reasons = ["`shard` must say how a new layer is sharded", "as its neighbours are", "each wrapped by fully_shard"]
    for found in shards:
        for said, reason in zip(found["refused"], reasons, strict=True):
            assert reason in said
            assert said.endswith("Attached: False")


def test_a_single_process_that_is_wrapped(alone, tmp_path):
    (found,) = launch(refinements.wrapped_alone, 1, tmp_path)
    assert_same_run(found, alone["plain"])


def test_a_resumed_run_is_the_one_that_was_not(tmp_path):
    """Between two refinements and after them, to the same bits."""
    for found in launch(refinements.resumed, 2, tmp_path):
        for step in set(found) - {0}:
            again, whole = found[step], found[0]
            assert len(again["meshes"]) == 10 - step
            for name in ("meshes", "errors", "readings"):
                assert all(map(torch.equal, again[name], whole[name][step:]))
            assert all(torch.equal(value, whole["state"][name]) for name, value in again["state"].items())
