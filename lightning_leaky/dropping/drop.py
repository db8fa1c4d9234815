"""Blocks taken out of a model for good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from lightning_leaky.dropping.checks import check_blocks, chosen_blocks
from lightning_leaky.dropping.journal import Journal
from lightning_leaky.dropping.optimizers import forget
from lightning_leaky.dropping.outputs import difference, outputs_of
from lightning_leaky.dropping.rebuilding import Origin, mend, origins_of
from lightning_leaky.dropping.stacks import Stack, refused, stacks_of
from lightning_leaky.dropping.witness import Witness
from lightning_leaky.hooks.skipped import SkippedBlocks
from lightning_leaky.hooks.state import StateChoice
from lightning_leaky.hooks.structures import all_tensors_of
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.reading.measure import inputs_and_targets
from lightning_leaky.utilities.optimizer_steps import check_state_is_by_parameter

Model = TypeVar("Model", bound=nn.Module)


def drop_layers(
    model: Model,
    layers: LayerChoice | Sequence[str],
    batch: Any,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    state: StateChoice = None,
) -> Model:
    """Take blocks out of a model for good, in place.

    What returns is checked on a batch, in evaluation mode: it has the outputs of the model with those blocks skipped,
    bit for bit. The blocks after them move up, and take their names. A number that a block knows itself by
    (`layer_idx`, where a cache looks for it) moves along, and so does the number of blocks beside the list.

    A model that can be built anew from its `config` (as those of Hugging Face) or from its hyperparameters (a
    LightningModule with ``save_hyperparameters()``) still can: their numbers of blocks, and their lists of one value a
    block, are changed so that it is built with the same outputs, which is checked by building it. So
    ``save_pretrained`` and ``from_pretrained``, or a checkpoint and ``load_from_checkpoint``, give it back. For other
    models, save the `state_dict`, and build the smaller model by your own code.

    Args:
        model: A model, a LightningModule included.
        layers: Which blocks go: as of `lightning_leaky.paths.layers.choose_layers`, or a sequence of names.
        batch: A pair (inputs, targets), or bare inputs, on the device of the model. Inputs that are a dictionary are
            passed by keyword.
        optimizer: The optimizer that trains the model, or several. They forget the parameters that go, and keep the
            state of the others. A group that loses all of its parameters stays, empty: schedulers count groups.
        state: Which tensor of a block is its state, as of `make_leaky`, where its blocks take or return several of one
            shape.

    Returns:
        The model.

    Raises:
        ValueError: If a block cannot go: it is in no list, does not run, changes the shape, shares weights with what
            stays, is a leaky step, another one reads what it makes besides its state, the outputs differ, or the model
            could not be built anew. The model and the optimizer are then as they were.

    Example:
        >>> import torch
        >>> blocks = [nn.TransformerEncoderLayer(8, 2, batch_first=True) for _ in range(4)]
        >>> model = drop_layers(nn.Sequential(*blocks), ["1", "2"], torch.zeros(2, 5, 8))
        >>> len(model), model[1] is blocks[3]
        (2, True)
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
    for one in optimizers:
        check_state_is_by_parameter(one)
    chosen = chosen_blocks(model, layers)
    stacks = stacks_of(model, chosen)
    check_blocks(model, chosen)
    inputs, _ = inputs_and_targets(batch)
    blocks = [block for stack in stacks for block in stack.gone.values()]
    names = [name for stack in stacks for name in stack.names()]
    with Journal() as journal, Witness(stacks) as witness, SkippedBlocks(blocks, names, state) as skipping:
        skipping.skipped = set(range(len(blocks)))
        expected = outputs_of(model, inputs)
        _check_pass(expected, [name for name in names if name not in witness.ran])
        witness.close()  # it holds tensors
        for stack in stacks:
            skipping.skipped = {index for index, block in enumerate(blocks) if block in stack.gone.values()}
            alone = outputs_of(model, inputs)
            skipping.skipped = set()
            origins = origins_of(model, inputs, stack)
            stack.take_out(journal)
            failed = [one for one in origins if not mend(model, inputs, stack, one, alone, journal)]
            _check(model, inputs, [stack], alone, witness.readers)
            if failed:
                raise refused(stack.names(), _not_loaded(stack, failed[0]))
        _check(model, inputs, stacks, expected, {})
        journal.keep()
    forget(optimizers, {id(one) for block in blocks for one in block.parameters()})
    return model


def _check_pass(outputs: Any, idle: list[str]) -> None:
    """Raise ValueError where a pass with blocks skipped shows nothing."""
    if idle:
        raise refused(idle, "do not run with this batch, so that nothing shows what they do")
    if not all_tensors_of(outputs):
        raise ValueError(f"`model` must return tensors, so that they can be compared, got {type(outputs).__name__}.")


def _check(model: nn.Module, inputs: Any, stacks: list[Stack], expected: Any, readers: Mapping[str, str]) -> None:
    """Raise ValueError where a model without the blocks of some stacks does not return what is expected."""
    names = [name for stack in stacks for name in stack.names()]
    try:
        found = outputs_of(model, inputs)
    except Exception as error:  # whatever the model's code counts on
        raise refused(
            names, f"cannot go: the model does not run without them, {type(error).__name__}: {error}"
        ) from error
    told = difference(expected, found, [number for stack in stacks for number in stack.missing])
    if told is None:
        return
    reasons = [f"{reader!r} takes what {made!r} makes besides its state" for reader, made in [*readers.items()][:1]]
    reasons += [
        f"{key!r} of {type(stack.owner).__name__} has an entry for each block too"
        for stack in stacks
        for key in stack.parallels()
    ]
    because = "; ".join(reasons) or "the code around them counts on their number, or they on their place"
    raise refused(names, f"cannot go: the outputs {told} from those with the blocks skipped ({because})")


def _not_loaded(stack: Stack, origin: Origin) -> str:
    return (
        f"cannot go: {type(origin.module).__name__} could not be loaded again. Its settings, with {stack.size} blocks "
        f"changed to {len(stack.kept)} where they may mean {stack.name!r}, build none with these outputs. Make the "
        "number of blocks a setting, or drop from the model inside and save that"
    )
