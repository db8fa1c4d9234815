"""One process of several fails: the others end with an error in bounded time, and leave no hook behind."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lightning_leaky import LayerRefiner
from tests.distributed.fits import Data, make_callbacks, make_module, make_trainer
from tests.distributed.launch import exit_codes

pytestmark = pytest.mark.slow

TIMEOUT = 60


class Failing(Callback):
    """Fails on the last process at the third call of a hook, just before the callbacks after it speak to the others."""

    def __init__(self, hook: str, how: str) -> None:
        self.how, self.calls = how, 0
        setattr(self, hook, self._fail)

    def _fail(self, trainer, *args, **kwargs):
        self.calls += 1
        if self.calls == 3 and trainer.global_rank == trainer.world_size - 1:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError("as planned")


def work(hook: str, how: str, rank: int, size: int, folder: Path) -> None:
    """Fit, and write down which hooks are left after the error."""
    *callbacks, _ = make_callbacks()
    refiner = LayerRefiner(0.12, every_n_steps=2, start_step=2)
    trainer, module = make_trainer(size, [Failing(hook, how), *callbacks, refiner]), make_module()
    try:
        trainer.fit(module, Data())
    finally:
        left = [part for part in module.modules() if part._forward_hooks or part._forward_pre_hooks]
        hooks = [optimizer._optimizer_step_post_hooks for optimizer in trainer.optimizers]
        torch.save((len(left), any(hooks)), folder / f"{rank}_left.pt")


@pytest.mark.parametrize(
    ("hook", "how"),
    [
        ("on_before_optimizer_step", "killed"),  # the others wait for its part of a training reading
        ("on_before_zero_grad", "raises"),  # ... of the gradients
        ("on_train_batch_end", "raises"),  # ... of an estimated error
        ("on_validation_epoch_end", "killed"),  # ... of a validation reading
    ],
)
def test_nobody_waits_forever_for_one_that_fails(tmp_path, hook, how):
    *others, failed = exit_codes(partial(work, hook, how), 3, tmp_path, TIMEOUT)
    assert failed == (-signal.SIGKILL if how == "killed" else 1)
    assert all(code not in (0, None) for code in others)
    for rank in range(3 if how == "raises" else 2):
        assert torch.load(tmp_path / f"{rank}_left.pt") == (0, False)
