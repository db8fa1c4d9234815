"""The callback that reads the energies of a network while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_leaky.callbacks._loggers import announce_final, log_final, log_layout, log_text
from lightning_leaky.callbacks._trainer import (
    callbacks_of,
    check_strategy,
    fresh_samples,
    gradient_scale,
    has_flat_parameters,
    is_accumulating,
    is_due,
    log_period,
    log_scalars,
    may_skip_evaluation,
    num_steps,
    optimizer_weight_decay,
    settings_of_others,
    validates,
    without_log,
)
from lightning_leaky.explain.console import check_rich, print_layers
from lightning_leaky.explain.diagnosis import rank_scalars
from lightning_leaky.explain.guide import chart_layout, page, summary_keys
from lightning_leaky.functional._checks import check_non_negative, check_positive
from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.metrics.momenta import LossReduction, check_loss_reduction
from lightning_leaky.metrics.path_reader import MOMENTA, Readings, check_quantities
from lightning_leaky.metrics.segments import Form, check_form
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.paths.leaky_path import LeakyPath, knows_weights
from lightning_leaky.reading.layout import ATTENTION_MASK, Layout, PaddingMask
from lightning_leaky.reading.observer import PathObserver, check_residual
from lightning_leaky.reading.sample import PathSample

# No stable rank: it needs the whole spectrum of every layer, which takes several times as long as all of these.
_DEFAULT_READINGS = ("cost_of_identity", "kinetic_energy")
# Without a leak the one is 0 and the other the kinetic energy once more.
_DEFAULT_OF_LEAKS = ("potential_energy", "energy_hamiltonian")
_DEFAULT_MOMENTA = ("hamiltonian", "criticality_residual")


class EnergyMonitor(Callback):
    """Logs cost of identity, kinetic energy and other readings of every layer (arXiv 2405.17573, section 1).

    Two kinds of readings, both also kept in `readings`:

    - ``readings["train"]``: of the training batch (all micro-batches of an accumulated one), every `every_n_steps`
      optimizer steps, taken after the backward pass and before the optimizer moves the weights.
    - ``readings["validate"]`` and ``readings["test"]``: of the whole data set, exactly. No gradients flow there, so no
      momentum quantities. The keys start with ``val_`` and ``test_``.

    Callbacks with a method ``on_readings(trainer, pl_module, monitor, stage)`` are told of each reading: `step` is then
    its place on the x-axis of the loss, and `samples` are `num_shown` rows of the batch on their way.

    Training is not touched: losses are bit-equal with and without the monitor. A layer that diverged reads NaN, with
    one warning; a batch that cannot be read is left out, with one warning that says why.

    Log keys, with ``layer_03`` for the third layer, read at A_2 with V_3 and B_3:

    ==========================================  ======  ================================================================
    key                                         unit    meaning
    ==========================================  ======  ================================================================
    ``cost_of_identity/layer_*``                –       ‖A‖²_K: soft count of the dimensions in use
    ``cost_of_identity/min``                    –       least over the layers: nears the bottleneck rank from above
    ``kinetic_energy/layer_*``                  energy  (1/(2L̃))‖∂_pA‖²_K: how much the layer works
    ``potential_energy/layer_*``                energy  −(L̃/2)‖A‖²_K
    ``cross_term/layer_*``                      –       ⟨∂_pA, A⟩_K
    ``lagrangian/layer_*``                      energy  least weight cost of the step per unit of p
    ``energy_hamiltonian/layer_*``              energy  kinetic plus potential energy
    ``energy_hamiltonian/bottleneck_rank``      –       median of −2H/L̃ along the path (L̃ > 0)
    ``energy_hamiltonian/bottleneck_rank_min``  –       least of −2H/L̃ over the layers
    ``energy_hamiltonian/bottleneck_rank_max``  –       greatest of −2H/L̃ over the layers
    ``energy_hamiltonian/spread``               energy  max − min over the layers
    ``speed/layer_*``                           –       ‖∂_pA‖_K
    ``speed/path_length``                       –       Σ_l ρ_l ‖∂_pA‖_K
    ``stable_rank/layer_*``                     –       ‖A‖²_*/‖A‖²_F
    ``hamiltonian/layer_*``                     energy  momentum form, (L̃/2)‖Bᵀσ(A)‖² − L̃ tr(BᵀA)
    ``hamiltonian/bottleneck_rank``             –       median of −2H/L̃ along the path: nears the rank from below
    ``hamiltonian/bottleneck_rank_min``         –       least of −2H/L̃ over the layers
    ``hamiltonian/bottleneck_rank_max``         –       greatest of −2H/L̃ over the layers
    ``hamiltonian/spread``                      energy  max − min over the layers
    ``criticality_residual/layer_*``            –       ‖W − L̃Bᵀσ(A)‖/‖W‖: near 0 the Hamiltonian can be trusted
    ``criticality_residual/max``                –       greatest over the layers
    ``momentum_norm/layer_*``                   –       ‖B‖_F
    ``features_momentum_norm/layer_*``          –       ‖Bᵀσ(A)‖_F
    ``rank/lower``, ``rank/upper``              –       median of −2H/L̃ and least cost of identity, the lower first, of
                                                        training readings where they are estimates: the median
                                                        criticality residual, where it is read, is below 0.5, the first
                                                        is not below 0 nor more than 0.5 above the second
    ==========================================  ======  ================================================================

    Where the path has several segments, summaries are per segment, as ``cost_of_identity/segment_2/min``.

    Args:
        layers: Which modules to read: a glob over their names, as ``"encoder.layers.*"``, where ``*`` stops at a dot; a
            regular expression after ``"re:"``; a type of module (in YAML its import path); or a predicate
            ``(name, module) -> bool`` (in YAML its import path). ``None`` takes the leaky path of the model or, where
            it has none, the longest run of shape-preserving blocks of one class, found on the first batch and named in
            the log. Blocks that change the shape are left out and split the path into segments.
        quantities: Which readings to take, by the first part of their keys. ``None``: cost of identity and kinetic
            energy; with a leak (L̃ > 0) potential energy and the sum of both; of a `LeakyResNet`, where λ is
            known, the Hamiltonian in momentum form with its criticality residual.
        every_n_steps: Optimizer steps between two training readings; ``None`` follows the trainer's
            ``log_every_n_steps``.
        on_validation: Whether to read whole validation and test sets.
        gamma: The stabiliser γ of the K-norm; 0 for the raw form, ``None`` for a relative one. See `KNorm`.
        gamma_rel: γ0 of the relative stabiliser γ = γ0 ‖K‖_op.
        weight_decay: λ of the objective, for the momentum readings; ``None`` takes that of the optimizer, converted as
            `lightning_leaky.functional.objective_weight_decay` says, and of a leaky path that knows its weights the
            module's ``weight_decay``; where there are both, their sum, with a warning.
        effective_depth: L̃ of layers chosen by `layers`; a leaky path knows its own.
        loss_reduction: ``"mean"`` where the cost is a mean over the samples of a batch, ``"sum"`` where it is a sum.
        layout: How the axes of a representation become samples and neurons, whether positions are averaged, and how
            many are read at most; see `Layout`. ``None`` reads (N, w), (batch, tokens, w), (batch, w, height, width).
        padding_mask: Where a batch says which positions are real: a key, if it is a dictionary, under which non-zero
            means real, or a function of the batch that returns such a mask (in YAML its import path). The default key
            need not be there. Where the batch does not say, transformer layers of torch.nn that are given a padding
            mask by keyword do. ``None`` reads padding too.
        form: ``"moments"`` sums second moments, ``8 L (d² + 2dw)`` bytes for the energies, ``8 L w²`` for the stable
            rank and ``8 L dw`` for the momenta (d = w + 1), exact over any data set; ``"samples"`` keeps N samples,
            ``2 N L w`` float32 (``3 N L w`` with momenta), and works with N × N matrices; ``"auto"`` keeps samples
            while those of all processes are at most w and then sums moments, or, where moments would take more than
            1 GiB, keeps as many samples as fill it, which is said once.
        print_layers: Whether to print a table of the last training reading at the end of a fit (needs rich).
        prefix: What all log keys begin with, as ``"encoder/"``: for the second of two monitors, whose keys would be
            those of the first.

    Attributes:
        readings: The last readings, by ``"train"``, ``"validate"`` and ``"test"``.
        step: Where the last of them is on the x-axis of the loss.
        num_shown: Rows of each training batch to keep in `samples`; a callback that wants some raises it in ``setup``.

    Raises:
        ModuleNotFoundError: If a table is wanted and rich is missing.
        ValueError: If an argument is out of range; at the start of a run if no module matches `layers`, one that does
            contains another, or momentum quantities are asked for without a weight decay.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[EnergyMonitor()], logger=False)
    """

    def __init__(
        self,
        layers: LayerChoice | None = None,
        quantities: Sequence[str] | None = None,
        every_n_steps: int | None = None,
        on_validation: bool = True,
        gamma: float | None = None,
        gamma_rel: float = 1e-3,
        weight_decay: float | None = None,
        effective_depth: float = 0.0,
        loss_reduction: LossReduction = "mean",
        layout: Layout | None = None,
        padding_mask: PaddingMask = ATTENTION_MASK,
        form: Form = "auto",
        print_layers: bool = False,
        prefix: str = "",
    ) -> None:
        if print_layers:
            check_rich()  # here, and not after an hour of training
        KNorm(gamma, gamma_rel)  # refuses bad stabilisers here, where the traceback shows the caller
        if quantities is not None:
            check_quantities(quantities)
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"`every_n_steps` must be at least 1, got {every_n_steps!r}.")
        self.layers = layers
        self.quantities = quantities
        self.every_n_steps = every_n_steps
        self.on_validation = on_validation
        self.gamma, self.gamma_rel = gamma, gamma_rel
        self.weight_decay = None if weight_decay is None else check_positive("weight_decay", weight_decay)
        self.effective_depth = check_non_negative("effective_depth", effective_depth)
        self.loss_reduction = check_loss_reduction(loss_reduction)
        if layout is not None and not isinstance(layout, Layout):
            raise ValueError(f"`layout` must be a Layout, got {layout!r}; write Layout({layout!r}) for its axes.")
        self.layout = layout
        self.padding_mask = padding_mask
        self.form: Form = check_form(form)
        self.print_layers = print_layers
        self.prefix = prefix
        self.readings: dict[str, Readings] = {}
        self._train: PathObserver | None = None
        self._evaluation: PathObserver | None = None
        self._is_collecting = False
        self.num_shown, self.step = 0, 0
        self._said: set[str] = set()
        self._unlogged: Readings | None = None
        self._is_explained = False
        self._written: object = None
        self._warned_of_nan = False

    @property
    def path(self) -> LeakyPath | None:
        """The layers that are read in a fit; ``None`` outside of one, and where none has been found yet."""
        return None if self._train is None else self._train.path

    @property
    def samples(self) -> list[PathSample]:
        """`num_shown` samples of the last training batch that was read, one entry a segment: for pictures."""
        return [] if self._train is None else self._train.samples

    # Hooks exist between the start of a run and its end, or its exception.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the forward hooks; layers may not exist earlier."""
        self._is_explained = False
        self.readings.pop("train", None)  # of another fit
        self._detach()
        self._start(trainer, pl_module)
        self._warn_of_settings(trainer)
        if self._train is not None and log_period(trainer):
            leaks = (self.effective_depth if self._train.path is None else self._train.path.effective_depth) > 0
            keys = summary_keys(self._train.quantities, leaks)
            announce_final(trainer, [f"{self.prefix}final_{key}" for key in keys])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the forward hooks of a run without a fit, and start the sums anew."""
        self._start_evaluation(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the forward hooks of a run without a fit, and start the sums anew."""
        self._start_evaluation(trainer, pl_module)

    def on_layers_changed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the layers that there are now, after a step whose reading may still have to be logged."""
        unlogged = self._unlogged
        self._detach()
        self._start(trainer, pl_module)
        self._unlogged = unlogged

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the forward hooks."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the forward hooks: after an exception there is no teardown."""
        self._detach()

    # Training: armed over the micro-batches of one optimizer step, computed before the weights move.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Arm for a batch whose optimizer step is to be read."""
        if self._train is None:
            return
        if is_due(trainer, self.every_n_steps or log_period(trainer)):
            if not self._is_collecting:
                self._train.reset()
                self._is_collecting = True
            self._train.arm(batch)
        elif self._train.path is None:
            self._train.arm()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Ignore forward passes made inside backward, as activation checkpointing does."""
        if self._train is not None:
            self._train.disarm()
            if not self._is_collecting and self._train.path is None:
                self._train.forget()
                self._say(self._train)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Read while weights and step-sizes are still those of the forward pass."""
        if self._is_collecting:
            self._finish(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a micro-batch that did not step, or log the reading of the one that did."""
        if self._is_collecting and self._train is not None:
            if is_accumulating(trainer):
                self._train.drain(gradient_scale(trainer))
            else:  # manual optimization around Lightning's optimizers: no hook was called before the step
                self._finish(trainer)
        if self._unlogged is not None:
            readings, self._unlogged = self._unlogged, None
            if log_period(trainer):
                log_scalars(trainer, readings.scalars(self.prefix) | rank_scalars(readings, self.prefix))
            self._publish(trainer, pl_module, "train", readings)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the last summaries beside the hyper-parameters of the run, and print the table that was asked for."""
        finals = {f"{self.prefix}final_{key}": float(value) for key, value in self._last_summaries().items()}
        if finals and log_period(trainer):
            log_final(trainer, finals, num_steps(trainer))
        if self.print_layers and "train" in self.readings and trainer.is_global_zero:
            print_layers(self.readings["train"])

    # Evaluation: armed for every batch, computed once over the whole data set.

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Arm for a batch, except of the sanity check."""
        self._arm_evaluation(trainer, batch, *args, **kwargs)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Arm for a batch."""
        self._arm_evaluation(trainer, batch, *args, **kwargs)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Add a batch."""
        self._drain_evaluation(trainer)

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Add a batch."""
        self._drain_evaluation(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the readings of the whole validation set."""
        self._finish_evaluation(trainer, pl_module, "validate", "val_")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the readings of the whole test set."""
        self._finish_evaluation(trainer, pl_module, "test", "test_")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the observers behind: a copy has no hooks until its run starts."""
        state = {**self.__dict__, "_train": None, "_evaluation": None, "_is_collecting": False, "_unlogged": None}
        return without_log(state)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the observers of a run."""
        check_strategy(trainer, "EnergyMonitor")
        path = path_of(pl_module, self.layers, self.effective_depth)
        weight_decay, decay = self._weight_decays(trainer, pl_module, path)
        quantities = self._wanted(trainer, path, weight_decay, decay)
        if trainer.state.fn == "fit":
            self._train = self._observe(pl_module, path, quantities, weight_decay, decay)
            self._train.num_shown = self.num_shown
        readable = [name for name in quantities if name not in MOMENTA]
        if not (self.on_validation and readable):
            return
        if may_skip_evaluation(trainer):
            rank_zero_warn(
                "EnergyMonitor reads no validation and test sets where "
                "`allow_zero_length_dataloader_with_multiple_devices` is set: a process without batches skips the "
                "whole loop, and the others would wait for it forever. Give each process a batch, or unset it."
            )
        else:
            self._evaluation = self._observe(pl_module, path, readable, None, None)

    def _weight_decays(
        self, trainer: Trainer, pl_module: LightningModule, path: LeakyPath | None
    ) -> tuple[float | None, float | None]:
        """λ as it is known, and the optimizer's weight decay, whose λ is added."""
        if self.weight_decay is not None:
            return self.weight_decay, None
        decay = optimizer_weight_decay(trainer, pl_module if path is None else path.layers)
        own = getattr(pl_module, "weight_decay", None) if knows_weights(path) else None
        if own and decay:
            rank_zero_warn(
                f"EnergyMonitor: the model's own `weight_decay` = {own:g} is in its loss, and the optimizer decays the "
                f"same weights by {decay:g} besides; momenta are read with the λ of both together. Most likely one is "
                "too many: `torch.optim.AdamW` decays by 0.01 unless told `weight_decay=0.0`."
            )
        return float(own) if own else None, decay

    def _wanted(
        self, trainer: Trainer, path: LeakyPath | None, weight_decay: float | None, decay: float | None
    ) -> tuple[str, ...]:
        """The quantities asked for, or those that this path has by default."""
        has_weights = knows_weights(path) and not has_flat_parameters(trainer)
        if self.quantities is None:
            momenta = _DEFAULT_MOMENTA if has_weights and (weight_decay or decay) else ()
            leaks = (self.effective_depth if path is None else path.effective_depth) > 0
            reads_all = self.layout is None or self.layout.reads_all_positions
            return _DEFAULT_READINGS + (_DEFAULT_OF_LEAKS if leaks else ()) + (momenta if reads_all else ())
        check_residual(self.quantities, path)
        if "criticality_residual" in self.quantities and not has_weights:
            raise ValueError(
                f'`quantities` cannot include "criticality_residual" under {type(trainer.strategy).__name__}: it needs '
                "the weights, and FSDPStrategy leaves pieces of them (ModelParallelStrategy does not). Leave it out."
            )
        return tuple(self.quantities)

    def _observe(
        self,
        pl_module: LightningModule,
        path: LeakyPath | None,
        quantities: Sequence[str],
        weight_decay: float | None,
        decay: float | None,
    ) -> PathObserver:
        return PathObserver(
            pl_module,
            path,
            quantities,
            self.gamma,
            self.gamma_rel,
            weight_decay,
            decay,
            self.loss_reduction,
            self.effective_depth,
            self.layout,
            self.form,
            self.padding_mask,
        ).attach()

    def _detach(self) -> None:
        for observer in (self._train, self._evaluation):
            if observer is not None:
                observer.detach()
        self._train = self._evaluation = None
        self._is_collecting, self._unlogged = False, None

    def _warn_of_settings(self, trainer: Trainer) -> None:
        others = [other for other in callbacks_of(trainer) if isinstance(other, EnergyMonitor) and other is not self]
        if any(other.prefix == self.prefix for other in others):
            rank_zero_warn(
                f"Several EnergyMonitors have the `prefix` {self.prefix!r} and write under the same keys; give one of "
                'them another, as in EnergyMonitor("decoder.layers.*", prefix="decoder/").'
            )
        if not trainer.loggers:
            rank_zero_warn("EnergyMonitor has no logger to write to: readings are kept in its `readings` only.")

    def _finish(self, trainer: Trainer) -> None:
        self._is_collecting = False
        if self._train is not None:
            self._train.drain(gradient_scale(trainer))
            self._say(self._train)
            self._unlogged = self._train.compute()

    def _start_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._evaluation is None and self._train is None:
            self._start(trainer, pl_module)
        if self._evaluation is not None:
            self._evaluation.reset()

    def _arm_evaluation(self, trainer: Trainer, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self._evaluation is not None and not trainer.sanity_checking:
            self._evaluation.arm(batch, fresh_samples(trainer, batch_idx, dataloader_idx))

    def _drain_evaluation(self, trainer: Trainer) -> None:
        if self._evaluation is not None and not trainer.sanity_checking:
            self._evaluation.drain()
            self._say(self._evaluation)

    def _finish_evaluation(self, trainer: Trainer, pl_module: LightningModule, stage: str, prefix: str) -> None:
        if self._evaluation is None or trainer.sanity_checking:
            return
        readings = self._evaluation.compute()
        if readings is not None:
            prefix = self.prefix + prefix
            log_scalars(trainer, readings.layers(prefix))
            # What `validate` and `test` print and return. They are of all processes already: the two flags together
            # reduce nothing and keep Lightning from advising to, once a key.
            summaries = {key: value.to(torch.float32) for key, value in readings.summaries(prefix).items()}
            pl_module.log_dict(summaries, batch_size=1, sync_dist=True, rank_zero_only=True)
            self._publish(trainer, pl_module, stage, readings)

    def _explain(self, trainer: Trainer, readings: Readings) -> None:
        """Write once what the tags of this run mean, and which of them belong into one chart."""
        if self._is_explained or not log_period(trainer) or not trainer.is_global_zero:
            return
        self._is_explained = True
        training, evaluation = (
            () if observer is None else observer.quantities for observer in (self._train, self._evaluation)
        )
        # By name, subclasses too: a callback does not import the others.
        names = {cls.__name__ for callback in callbacks_of(trainer) for cls in type(callback).__mro__}
        adapts = ("step_size",) if "StepSizeAdapter" in names else ()
        # The one number of a path in several segments has a key for each of them.
        has_rank = readings.effective_depth > 0 and len(readings.segments) <= 1
        validated = evaluation if validates(trainer) or trainer.state.fn == "test" else ()
        layout = chart_layout((*training, *adapts), validated, has_rank, self.prefix)
        text = page((*training, *evaluation, *adapts), self._settings(trainer, readings), names)
        written = ([(logger.name, logger.version) for logger in trainer.loggers], layout, text)
        if written == self._written:  # a fit that goes on in the same log
            return
        self._written = written
        if layout:
            log_layout(trainer, layout)
        log_text(trainer, f"{self.prefix}layers/guide", text)

    def _settings(self, trainer: Trainer, readings: Readings) -> dict[str, object]:
        """What is read, and with what: not what was asked for, which may have been nothing."""
        decay = None if self._train is None else self._train.weight_decay_read
        known = [f"{readings.names[0]} … {readings.names[-1]}"] if readings.names else []
        return {
            "layers": ", ".join([f"{len(readings.step_sizes)} layers", *known]),
            "segments": readings.segments or "one",
            "effective depth L̃": f"{readings.effective_depth:g}",
            "weight decay λ": "no momenta are read" if decay is None else f"{decay:g}",
            "stabiliser γ": f"{self.gamma_rel:g} ‖K‖" if self.gamma is None else f"{self.gamma:g}",
            "optimizer steps between two training readings": self.every_n_steps or log_period(trainer),
            "validation and test sets are read": self._evaluation is not None,
            **{name: getattr(self, name) for name in ("loss_reduction", "layout", "padding_mask", "form")},
            **settings_of_others(trainer, self),
        }

    def _last_summaries(self) -> dict[str, torch.Tensor]:
        """Those of the last training reading; of several segments those of the longest, beside each."""
        if "train" not in self.readings:
            return {}
        readings = self.readings["train"]
        longest = max(readings.split(), key=lambda part: len(part.step_sizes))
        return longest.summaries() | readings.summaries()

    def _say(self, observer: PathObserver) -> None:
        """Log once what is read, and how."""
        for note in observer.notes:
            if note not in self._said:
                self._said.add(note)
                rank_zero_info(f"EnergyMonitor: {note}")
        observer.notes.clear()

    def _publish(self, trainer: Trainer, pl_module: LightningModule, stage: str, readings: Readings) -> None:
        """Keep the readings, warn once of what is not finite, and tell callbacks that look at readings."""
        self.readings[stage], self.step = readings, num_steps(trainer)
        self._explain(trainer, readings)
        for callback in callbacks_of(trainer):
            tell = getattr(callback, "on_readings", None)
            if callable(tell):
                tell(trainer, pl_module, self, stage)
        if not self._warned_of_nan and not readings.is_finite():
            self._warned_of_nan = True
            broken = [name for name, values in readings.quantities.items() if not torch.isfinite(values).all()]
            rank_zero_warn(
                f"EnergyMonitor: {broken} are not finite in the {stage} reading and are logged as they are. "
                "A layer has diverged, or no gradient has reached it."
            )
