"""What must hold after a fault and after the resumed run: everything is that of the undisturbed run, bit for bit."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from tests.campaigns.fit import lines_of, loadable
from tests.campaigns.settings import NUM_BATCHES, Places, Setting


class LostError(Exception):
    """A run did not survive."""


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise LostError(otherwise)


@dataclass(frozen=True)
class Reference:
    """An undisturbed run, read when it is asked for."""

    setting: Setting
    places: Places

    def end(self, rank: int) -> dict[str, Any]:
        (end,) = lines_of(self.places.notes("end", 0, rank))
        return end

    @property
    def errors(self) -> list[str]:
        """What went wrong in it, if anything did."""
        ends = [lines_of(self.places.notes("end", 0, rank)) for rank in range(self.setting.processes)]
        return [repr(end[0]["error"] if end else "no end") for end in ends if not end or end[0]["error"]]

    def steps(self, rank: int) -> dict[int, dict[str, Any]]:
        return {line["step"]: line for line in lines_of(self.places.notes("steps", 0, rank))}

    @cached_property
    def saves(self) -> list[dict[str, Any]]:
        return lines_of(self.places.notes("saved", 0, 0))

    @cached_property
    def checkpoints(self) -> dict[int, Any]:
        return {state["global_step"]: essence(state) for state in loadable(self.places.checkpoints).values()}

    @cached_property
    def checkpoint_size(self) -> int:
        return max(path.stat().st_size for path in self.places.checkpoints.iterdir())

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        return rows_of(self.places, 0)

    @cached_property
    def scalars(self) -> dict[tuple[str, int], bytes]:
        return scalars_of(self.places, 0)


def check_end(end: dict[str, Any]) -> None:
    """The process that is still there after the fit has no hook of ours."""
    require(not end["hooks"], f"hooks left: {end['hooks']}")


def check_words(end: dict[str, Any]) -> None:
    """The error of a process that has lost another names a process and the optimizer step."""
    said = " ".join([end["error"], *end["notes"]])
    for word in ("process", "step"):
        require(re.search(rf"{word} \d", said, re.IGNORECASE) is not None, f"no number of a {word} in: {said}")


def check_steps(places: Places, reference: Reference, attempt: int, last_step: int | None = None) -> None:
    """Losses, step-sizes and readings of every step, up to one, on every process."""
    for rank in range(reference.setting.processes):
        expected = reference.steps(rank)
        for line in lines_of(places.notes("steps", attempt, rank)):
            if last_step is None or line["step"] <= last_step:
                require(line == expected[line["step"]], f"step {line['step']} of process {rank} is another one: {line}")


def check_checkpoints(places: Places, reference: Reference, attempt: int, last_step: int | None = None) -> int:
    """Those that were written whole can be loaded, and those that can be loaded are right. Returns how many cannot."""
    found = loadable(places.checkpoints)
    for save in lines_of(places.notes("saved", attempt, 0)):
        require(Path(save["path"]) in found, f"{save['path']} was written whole and cannot be loaded")
    for path, state in found.items():
        step, kept = state["global_step"], essence(state)
        if last_step is None or step <= last_step:
            expected = reference.checkpoints.get(step, {})
            if is_between_steps(state, reference.setting):
                # A resumed ModelCheckpoint saves the step that it comes from once more, a micro-batch later.
                kept, expected = ({**one, "callbacks": None, "batches": None} for one in (kept, expected))
            require(same(kept, expected), f"{path.name} was loaded without an error and is not the undisturbed run's")
    return len(list(places.checkpoints.glob("*.ckpt"))) - len(found)


def check_logs(places: Places, reference: Reference, attempt: int, last_step: int | None = None) -> None:
    """Both logs can be read to their last complete line or event, and hold what the undisturbed run's hold."""
    may_lack = any(map(has_lost_values, lines_of(places.notes("end", attempt, 0))))
    for row in rows_of(places, attempt):
        if last_step is None or int(row["step"]) < last_step:
            is_known = row in reference.rows or (may_lack and any(row.items() < one.items() for one in reference.rows))
            require(is_known, f"metrics.csv has a row of its own: {row}")
    for key, value in scalars_of(places, attempt).items():
        if last_step is None or key[1] < last_step:
            require(reference.scalars.get(key) == value, f"TensorBoard has a value of its own at {key}")


def has_lost_values(end: dict[str, Any]) -> bool:
    """Whether a logger has failed in a call of our callbacks, which say so and go on."""
    return any(re.search("logging.* has failed.*BrokenError", said, re.IGNORECASE) for said in end["warnings"])


def check_weights(places: Places, reference: Reference, attempt: int) -> None:
    """Weights and step-sizes in which the training ended, on every process."""
    for rank in range(reference.setting.processes):
        found = torch.load(places.notes("weights", attempt, rank))
        expected = torch.load(reference.places.notes("weights", 0, rank))
        require(same(found, expected), f"final weights of process {rank} differ from the undisturbed run's")


def check_close(places: Places, reference: Reference, setting: Setting) -> None:
    """Several processes with shares of their own are one with all samples, to 1e-9, and have the same step-sizes."""
    found = [lines_of(places.notes("steps", 0, rank)) for rank in range(setting.processes)]
    expected = reference.steps(0)
    require(all(len(lines) == len(expected) for lines in found), f"steps: {list(map(len, found))}")
    for lines in zip(*found, strict=True):
        step = lines[0]["step"]
        ours = [{name: line[name] for name in ("step", "step_sizes", "reading")} for line in lines]
        require(all(same(one, ours[0]) for one in ours), f"processes differ at step {step}: {lines}")
        own, one = ({**line["reading"], "step_sizes": line["step_sizes"]} for line in (ours[0], expected[step]))
        require(own.keys() == one.keys(), f"readings at step {step}: {[*own]}, expected {[*one]}")
        for name in one:
            tensors = (torch.tensor(values[name], dtype=torch.float64) for values in (own, one))
            require(is_close(*tensors), f"{name} at step {step} is {own[name]}, expected {one[name]}")
    for rank in range(setting.processes):
        weights = torch.load(places.notes("weights", 0, rank))
        for name, tensor in torch.load(reference.places.notes("weights", 0, 0)).items():
            require(is_close(weights[name], tensor), f"final {name} of process {rank} is {weights[name]}")


def is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(torch.isclose(one, other, rtol=1e-9, atol=1e-12, equal_nan=True).all())


def essence(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What decides how the training goes on; a ModelCheckpoint keeps paths, which differ from run to run."""
    kept = {name: checkpoint[name] for name in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")}
    ours = {key: state for key, state in checkpoint["callbacks"].items() if not key.startswith("ModelCheckpoint")}
    return kept | {"callbacks": ours, "batches": checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]}


def is_between_steps(checkpoint: dict[str, Any], setting: Setting) -> bool:
    """Whether it was saved while gradients, which no checkpoint holds, were being accumulated."""
    (batches,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    return batches["position"] % NUM_BATCHES % setting.accumulate > 0


def same(one: Any, other: Any) -> bool:
    """Equality of nested tensors, to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def rows_of(places: Places, attempt: int) -> list[dict[str, str]]:
    """Complete rows of the CSVLogger's file, without their empty fields."""
    path = places.logs / "csv" / str(attempt) / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(line for line in file if line.endswith("\n"))) or [[]]
    for row in rows:
        require(len(row) == len(header), f"metrics.csv has {len(header)} columns and a row of {len(row)}: {row}")
    return [{key: value for key, value in zip(header, row, strict=True) if value} for row in rows]


def scalars_of(places: Places, attempt: int) -> dict[tuple[str, int], bytes]:
    """Values in TensorBoard's files by tag and step, in their own bytes: a NaN equals itself."""
    found = {}
    for path in (places.logs / "tensorboard" / str(attempt)).glob("events*"):
        events = list(EventFileLoader(str(path)).Load())
        complete = sum(1 for _ in records_of(path))
        require(len(events) == complete, f"{path.name} holds {complete} complete events and reads as {len(events)}")
        for event in events:
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    found[value.tag, event.step] = value.tensor.SerializeToString()
    return found


def records_of(path: Path) -> Iterator[bytes]:
    """Complete records of a file in TensorFlow's format: length, its checksum, data, their checksum."""
    content, begin = path.read_bytes(), 0
    while begin + 12 <= len(content):
        end = begin + 12 + int.from_bytes(content[begin : begin + 8], "little")
        if end + 4 > len(content):
            return
        yield content[begin + 12 : end]
        begin = end + 4
