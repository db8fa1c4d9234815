"""The long run on a few hundred steps: what is not timing holds, and every verdict but that on time can fail."""

import os

import pytest
import torch
from lightning.pytorch import Callback

from tests.campaigns.long_run import Limits, train, verdicts

# The first steps allocate, and the run is too short for its time to say anything.
LENIENT = Limits(growth=1.1, slowdown=float("inf"))
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The number of training batches")]


def failures(run):
    return {verdict.name for verdict in verdicts(run, warm_up=100, limits=LENIENT) if not verdict.is_good}


class Hoarder(Callback):
    """Keeps 1 MiB a step."""

    def __init__(self):
        self.hoard = []

    def on_train_batch_end(self, *args):
        self.hoard.append(torch.ones(2**18))


class Opener(Callback):
    """Leaves a file open every 100 steps."""

    def __init__(self):
        self.opened = []

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step % 100 == 0:
            self.opened.append(os.open(os.devnull, os.O_RDONLY))

    def teardown(self, *args, **kwargs):
        for descriptor in self.opened:
            os.close(descriptor)


class Pusher(Callback):
    """Makes the step-sizes larger once, by a thousandth."""

    def on_train_batch_start(self, trainer, pl_module, *args):
        if trainer.global_step == 205:
            pl_module.network.step_sizes.mul_(1.001)


def test_a_few_hundred_steps_leave_nothing_behind():
    assert not failures(train(400, 50, "64-true"))


def test_what_grows_is_found():
    run = train(400, 50, others=[Hoarder(), Opener(), Pusher()])
    assert failures(run) == {"memory", "descriptors", "sum, torch.float32"}
