"""Faults of several processes: one of two is told to end, dies in a sum, comes late, or has other batches."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tests.campaigns.checks import Reference, check_close, check_logs, check_steps, check_weights, require
from tests.campaigns.disturbances import STEPS, Disturbance, Killed, References, draw_moment
from tests.campaigns.fit import Session
from tests.campaigns.settings import PATIENCE, Places, Setting

MOMENTS = 80  # calls and returns of Python in one of our collectives: 50 of a sum, 80 of a gathering


@dataclass(frozen=True, kw_only=True)
class ToldToEnd(Killed):
    """SIGTERM to one of two processes, which may have taken Lightning's handler away."""

    signal: signal.Signals = signal.SIGTERM
    with_handler: bool = True

    def arm(self, session: Session) -> None:
        def action(number: int, call: Callable[[], Any]) -> Any:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            return call()

        super().arm(session)
        if not self.with_handler:
            session.intercept("module.on_train_start", action)


@dataclass(frozen=True, kw_only=True)
class KilledInside(Killed):
    """`kill -9` inside one of our collectives: the moment counts from its beginning."""

    number: int
    signal: signal.Signals = signal.SIGKILL

    def arm(self, session: Session) -> None:
        def action(number: int, call: Callable[[], Any]) -> Any:
            if number == self.number:
                strike = partial(self.strike, session)
                session.clock.set(session.clock.now + 4 + self.moment, strike)  # this line has four
            return call()

        session.intercept("processes.collective", action)


@dataclass(frozen=True, kw_only=True)
class GoesOn(Disturbance):
    """Nothing that ends a run, which must be the undisturbed one."""

    def check(self, end: dict[str, Any], places: Places) -> None:
        require(end["error"] is None, f"ended with {end['error']}")

    def check_whole(self, places: Places, reference: Reference) -> None:
        """All that the run has left, on every process."""
        check_steps(places, reference, 0)
        check_logs(places, reference, 0)
        check_weights(places, reference, 0)


@dataclass(frozen=True, kw_only=True)
class Late(GoesOn):
    """One process comes late by some seconds, once: the other waits for it."""

    method: str
    number: int
    delay: float = 30.0

    @property
    def compared_with(self) -> Setting:
        return replace(self.setting, patience=PATIENCE)

    def arm(self, session: Session) -> None:
        def action(number: int, call: Callable[[], Any]) -> Any:
            if number == self.number:
                session.has_happened = True
                time.sleep(self.delay)
            return call()

        session.intercept(self.method, action)

    def check(self, end: dict[str, Any], places: Places) -> None:
        super().check(end, places)
        require(end["has_happened"], "was not late")


@dataclass(frozen=True, kw_only=True)
class Uneven(GoesOn):
    """Two processes have 1 and 3 samples of a batch, or 3 and 1, or 2 each; one process with all 4 is the reference."""

    @property
    def compared_with(self) -> Setting:
        return replace(self.setting, processes=1, cut=None)

    def check_whole(self, places: Places, reference: Reference) -> None:
        check_close(places, reference, self.setting)


def draw_two(rng: random.Random, with_callbacks: bool, **others: Any) -> Setting:
    return Setting(2, rng.choice([1, 2]), with_callbacks, **others)


def draw_told(rng: random.Random, references: References, with_callbacks: bool) -> ToldToEnd:
    """Half of them with the default handler, which ends a process at once."""
    setting, rank = draw_two(rng, with_callbacks), rng.randrange(2)
    with_handler = rng.random() < 0.5
    # Lightning's handler broadcasts in the middle of what goes on; gloo aborts where sizes differ.
    return ToldToEnd(
        setting=setting,
        rank=rank,
        moment=draw_moment(rng, references(setting), rank),
        with_handler=with_handler,
        exit_codes=(-signal.SIGTERM, -signal.SIGABRT),
    )


def draw_killed_inside(rng: random.Random, references: References, with_callbacks: bool) -> Disturbance:
    """Without our callbacks no collective is ours, and no step is late."""
    setting, rank = draw_two(rng, with_callbacks), rng.randrange(2)
    number = references(setting).end(0)["calls"].get("processes.collective", 0)
    if not number:
        return Late(setting=setting, rank=rank, method=STEPS[0], number=1, delay=0.0)
    return KilledInside(
        setting=setting,
        rank=rank,
        number=rng.randint(1, number),
        moment=rng.randint(1, MOMENTS),
        exit_codes=(-signal.SIGKILL,),
    )


def draw_late(rng: random.Random, references: References, with_callbacks: bool) -> Late:
    """In two processes that wait for each other for a minute longer."""
    setting = draw_two(rng, with_callbacks)
    rank, method = rng.randrange(2), rng.choice(STEPS)
    number = rng.randint(1, references(setting).end(0)["calls"][method])
    return Late(setting=replace(setting, patience=PATIENCE + 60), rank=rank, method=method, number=number)


def draw_uneven(rng: random.Random, references: References, with_callbacks: bool) -> Uneven:
    """In float64, in which sums in another order are the same to 1e-9."""
    return Uneven(setting=draw_two(rng, with_callbacks, precision=64, cut=rng.randrange(3)), rank=rng.randrange(2))


FAULTS_OF_SEVERAL: dict[str, Callable[[random.Random, References, bool], Disturbance]] = {
    "sigterm to one of two": draw_told,
    "kill in a sum": draw_killed_inside,
    "late process": draw_late,
    "uneven batches": draw_uneven,
}
