"""Formulas: what processes exchange and keep for a reading of a path in one segment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning_leaky.metrics import Recipe
from lightning_leaky.metrics.layer_store import Form

ENERGIES = ("cost_of_identity", "kinetic_energy")
SPECTRUM = ("stable_rank",)
MOMENTA = ("hamiltonian", "momentum_norm")


@dataclass(frozen=True)
class Reading:
    """A reading of a path in one segment.

    Attributes:
        processes: P.
        rows: N, the most of any process.
        num_layers: L.
        width: w.
        with_momenta: Whether momenta are read, beside the energies.
        with_spectrum: Whether the stable rank is read, beside the energies.
        missing: Rows that all processes together have fewer than P N.
    """

    processes: int
    rows: int
    num_layers: int
    width: int
    with_momenta: bool = False
    with_spectrum: bool = False
    missing: int = 0

    @property
    def samples(self) -> int:
        """Samples n = P N of all processes."""
        return self.processes * self.rows

    @property
    def states(self) -> int:
        """How many rows each sample has per layer: of A_{l−1}, A_l and, for momenta, B_l."""
        return 3 if self.with_momenta else 2

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities that are read."""
        return ENERGIES + (SPECTRUM if self.with_spectrum else ()) + (MOMENTA if self.with_momenta else ())

    @property
    def recipe(self) -> Recipe:
        """The recipe of these quantities."""
        return Recipe(self.quantities)


@dataclass(frozen=True)
class Traffic:
    """Collectives that a process joins, and bytes that it hands to them and gets from them, its own among these."""

    collectives: int = 0
    given: int = 0
    taken: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.collectives + other.collectives, self.given + other.given, self.taken + other.taken)


def gathered(processes: int, given: int) -> Traffic:
    """Traffic of one all_gather."""
    return Traffic(1, given, processes * given)


def summed(given: int) -> Traffic:
    """Traffic of one all_reduce."""
    return Traffic(1, given, given)


def own_traffic(reading: Reading) -> Traffic:
    """What all forms agree on: whether a process has turned to sums, and the samples of each layer, as int64."""
    return summed(8 * (1 + reading.num_layers))


def results_traffic(reading: Reading, num_values: int) -> Traffic:
    """What all forms exchange at the end, because one process computes each layer: its numbers, in float64.

    Four products of A and V, so many singular values of A, and for momenta three numbers.
    """
    numbers = 4 + num_values * reading.with_spectrum + 3 * reading.with_momenta
    return summed(8 * reading.num_layers * numbers)


def samples_traffic(reading: Reading) -> Traffic:
    """Form "samples": a barrier, three sizes as int64, and N × 2L × w (with momenta 3L) float32 numbers.

    `own_traffic` and `results_traffic` besides. A process with fewer rows than others pads its own.
    """
    barrier, sizes = Traffic(1), gathered(reading.processes, 3 * 8)
    return (
        own_traffic(reading)
        + barrier
        + sizes
        + gathered(reading.processes, samples_memory(reading) // reading.processes)
        + results_traffic(reading, min(reading.samples - reading.missing, reading.width))
    )


def moments_traffic(reading: Reading) -> Traffic:
    """Form "moments": `own_traffic`, one sum a state, in float64, and `results_traffic`.

    Energies need Sᵀ[S, A, V] and the four inner products of (A, V), the stable rank AᵀA, momenta SᵀB and, in one state,
    tr(BᵀA), ‖B‖² and the number of samples.
    """
    w, d = reading.width, reading.width + 1
    numbers = [d * (d + 2 * w), 4]
    numbers += [w * w] if reading.with_spectrum else []
    numbers += [d * w, 3] if reading.with_momenta else []
    both_ends = own_traffic(reading) + results_traffic(reading, w)
    return sum((summed(8 * reading.num_layers * number) for number in numbers), both_ends)


def auto_traffic(reading: Reading) -> Traffic:
    """Form "auto" where moments fit: either form."""
    form = samples_traffic if reading.samples <= reading.width else moments_traffic
    return form(reading)


FORMS: dict[Form, Callable[[Reading], Traffic]] = {
    "samples": samples_traffic,
    "moments": moments_traffic,
    "auto": auto_traffic,
}


def agreement_traffic(reading: Reading) -> Traffic:
    """What `EnergyMonitor` adds: a flag, and for each layer its segment, width and bytes of an entry, as int64."""
    return gathered(reading.processes, 8 * (1 + 3 * reading.num_layers))


def samples_memory(reading: Reading) -> int:
    """Bytes of the samples of all processes, which each of them holds while it computes."""
    return 4 * reading.states * reading.samples * reading.num_layers * reading.width


def samples_peak(reading: Reading) -> int:
    """Bytes at the peak: for a moment the gathered pieces and what they are joined to are both there."""
    return 2 * samples_memory(reading)


def moments_peak(reading: Reading) -> int:
    """Bytes at the peak: the moments, and those of the energies three times more while they are summed."""
    sizes = reading.num_layers, reading.width
    return reading.recipe.state_bytes(*sizes) + 3 * Recipe(ENERGIES).state_bytes(*sizes)
