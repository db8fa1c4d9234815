"""Other people's loops: situations from public reports of people who do this kind of work, and what must happen.

A row is the kind of the situation, its name, the report that it imitates, and what must happen. The function of that
name, in a module `tests.others.loops_*`, is the situation; right values are those of tensors that it captures itself.
"""

import inspect
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.others import (
    loops_leaky,
    loops_passes,
    loops_said,
    loops_samples,
    loops_state,
    loops_steps,
    loops_structure,
)

# What a package may get wrong that reads, in a hook, what passes in somebody else's loop.
KINDS = {
    1: "Work in a hook that nobody asked for can raise.",
    2: "What was captured changes afterwards.",
    3: "A momentum belongs to the backward passes of the step.",
    4: "Structure is not what one batch shows.",
    5: "Which samples count is one rule everywhere.",
    6: "Which axis is the width is not guessed silently.",
    7: "Which tensor is the state.",
    8: "Reading has no side effects.",
    9: "A recomputed forward pass is no second pass.",
    10: "Wrappers that forward attributes.",
    11: "State that hooks carry.",
    12: "Two paths in one module.",
    13: "Steps that are not taken through `step()`.",
    14: "Nothing will be read.",
    15: "Pooled without a word.",
    16: "λ of layers that are not known yet.",
    17: "A path that runs more than once in a step.",
    18: "Said once means once a fit.",
    19: "Found, but not all.",
    20: "Noise that is not the network's.",
    21: "Networks without blocks.",
}

# fmt: off
LOOPS = [
    (1, "per_sample_gradients_by_vmap", "pytorch/functorch#488", "the fit goes on, nothing is read, one warning"),
    (1, "gradients_of_samples_beside_the_loss", "meta-pytorch/opacus#445", "right, or one warning"),
    (1, "a_directional_derivative_in_the_loss", "pytorch/functorch#1106", "the fit goes on, one warning"),
    (1, "several_gradients_at_once_beside_the_loss", "pytorch/functorch#488", "right, or one warning"),
    (1, "a_float8_cache_beside_the_state", "pytorch/pytorch#153621", "the state is read, the cache is not touched"),
    (1, "arguments_of_every_odd_kind", "pytorch/pytorch#153621", "complex, sparse, quantised, meta: the fit goes on"),
    (1, "counted_on_fake_tensors_before_training", "pytorch/pytorch#105445", "the fit goes on: right, or a warning"),
    (1, "traced_by_fx_in_the_middle_of_a_fit", "pytorch/vision#5193", "the fit goes on: right, or a warning"),
    (2, "in_place_activations_after_the_layers", "pytorch/pytorch#61519", "what the layers returned is read"),
    (2, "an_embedding_added_in_place_between_blocks", "pytorch/pytorch#95617", "what the blocks returned is read"),
    (2, "in_place_between_compiled_blocks", "pytorch/pytorch#95617", "what the blocks returned is read"),
    (2, "a_block_that_adds_into_its_input", "meta-pytorch/captum#156", "right, or refused; make_leaky refuses"),
    (2, "in_place_activations_while_validating", "meta-pytorch/captum#156", "right where torch counts no writes"),
    (2, "writes_that_torch_does_not_count", "meta-pytorch/captum#156", "right, or refused"),
    (2, "outputs_in_one_buffer", "pytorch/pytorch#95617", "what the blocks returned is read"),
    (3, "two_backward_calls_for_the_critic", "Lightning-AI/pytorch-lightning#594", "gradients of both add up"),
    (3, "gradients_that_the_generator_leaves_in_the_critic", "coqui-ai/Trainer#76", "count if the step uses them"),
    (3, "a_critic_that_steps_every_second_batch", "Lightning-AI/pytorch-lightning#2737", "read where it steps"),
    (3, "a_gradient_penalty_in_the_loss", "Lightning-AI/pytorch-lightning#4677", "inner gradients do not count"),
    (3, "weights_of_losses_from_their_gradients", "Lightning-AI/pytorch-lightning#4677", "nor those before the loss's"),
    (3, "backward_in_place_of_manual_backward", "Lightning-AI/pytorch-lightning#18740", "counts as the other does"),
    (3, "parameters_of_a_block_that_get_no_gradient", "s3prl/s3prl#192", "the others tell the step"),
    (3, "frozen_blocks_between_trained_maps", "huggingface/peft#1424", "the trainer tells the step"),
    (3, "gradients_that_are_zeroed_between_two_backward_calls", "coqui-ai/Trainer#76", "do not count"),
    (3, "several_evaluations_of_one_lbfgs_step", "Lightning-AI/pytorch-lightning#4188", "the first one is read"),
    (3, "batches_that_are_added_up_by_hand", "Lightning-AI/pytorch-lightning#12811", "no momenta, one warning"),
    (4, "layer_drop_of_wav2vec2", "s3prl/s3prl#350", "all layers are found; batches in which all ran are read"),
    (4, "depth_that_drops_for_a_whole_batch", "megvii-research/NAFNet#32", "all are found, idle ones did nothing"),
    (4, "blocks_that_run_from_the_last_to_the_first", "huggingface/transformers#20451", "all are found"),
    (4, "early_exits_in_the_first_batches", "huggingface/transformers#20451", "all are found"),
    (4, "a_momentum_encoder_longer_than_the_network", "Lightning-Universe/lightning-bolts#407", "not taken"),
    (4, "drop_path_of_single_samples", "huggingface/pytorch-image-models#2118", "all blocks are found and read"),
    (5, "a_mask_of_texts_beside_as_many_patches", "openai/CLIP#183", "texts without padding, every patch"),
    (5, "clip_of_transformers", "huggingface/transformers#31726", "texts without padding, every patch"),
    (5, "masks_deep_inside_a_batch", "mosaicml/diffusion#13", "padding is left out, by the monitor and by measure"),
    (5, "a_mask_that_the_network_takes_by_another_name", "mosaicml/diffusion#13", "left out, or said"),
    (5, "a_causal_mask_that_blocks_are_given", "openai/CLIP#183", "no padding; where it is as large, said"),
    (5, "masks_that_a_network_shortens", "s3prl/s3prl#350", "frames without padding"),
    (5, "queries_beside_as_many_padded_pixels", "facebookresearch/detr#580", "pixels without padding, every query"),
    (5, "padding_of_encoder_and_decoder", "huggingface/transformers#41750", "each without its own padding"),
    (5, "step_sizes_of_padded_texts", "openai/CLIP#183", "the same step-sizes, whatever the padding"),
    (6, "channels_before_time", "qubvel-org/segmentation_models.pytorch#1004", "channels are the width, for both"),
    (6, "sequences_before_the_batch", "hustvl/MaskAdapter#5", "attention tells; padding is left out"),
    (6, "attention_that_permutes_inside_of_a_block", "hustvl/MaskAdapter#5", "right, or said"),
    (6, "axes_that_the_modules_inside_tell", "qubvel-org/segmentation_models.pytorch#1004", "their width is taken"),
    (6, "axes_that_nothing_tells", "huggingface/pytorch-image-models#1438", "said once, with both layouts"),
    (7, "hidden_and_residual", "hustvl/Vim#6", 'right with state="sum"; without it right or refused'),
    (7, "a_residual_that_begins_as_none", "hustvl/Vim#6", "right, or refused"),
    (7, "one_of_two_streams_touched_between_layers", "hustvl/Vim#6", "right, or refused"),
    (7, "positions_of_the_shape_of_the_state", "facebookresearch/detr#55", "the state is read, not the positions"),
    (7, "leaky_steps_of_hidden_and_residual", "hustvl/Vim#6", "steps of the sum; without a word right or refused"),
    (7, "leaky_steps_beside_positions", "facebookresearch/detr#105", "steps of the state; right or refused"),
    (8, "spectral_norm_of_a_leaky_network", "pytorch/pytorch#57784", "losses and states stay bit-equal"),
    (8, "weight_norm_and_orthogonal_maps", "pytorch/pytorch#57784", "losses and states stay bit-equal"),
    (8, "measured_in_training_mode_with_spectral_norm", "pytorch/pytorch#8208", "nothing of the network changes"),
    (8, "lazy_layers_that_a_first_batch_makes", "pytorch/pytorch#44538", "the fit goes on and is read"),
    (9, "checkpointing_and_the_momenta_of_a_cost", "pytorch/pytorch#81296", "readings as without it"),
    (9, "checkpointing_and_a_backward_of_ones_own", "stanfordnlp/pyvene#242", "readings as without it"),
    (9, "checkpointing_of_groups_of_blocks", "stanfordnlp/pyvene#242", "readings as without it"),
    (9, "checkpointing_inside_of_each_block", "pytorch/pytorch#81296", "readings as without it"),
    (9, "checkpointing_that_transformers_switches_on", "huggingface/peft#2826", "readings as without it"),
    (9, "vit_of_timm_with_its_own_checkpointing", "stanfordnlp/pyvene#242", "readings as without it"),
    (9, "checkpointing_and_adaptive_step_sizes", "pytorch/pytorch#81296", "step-sizes as without it"),
    (10, "lora_on_a_leaky_model_and_back", "huggingface/peft#932", "undone whole, or refused and left as it was"),
    (10, "lora_merged_into_a_leaky_model", "huggingface/peft#932", "the leaky function stays"),
    (10, "a_model_that_accelerate_has_prepared", "huggingface/accelerate#2828", "as without accelerate"),
    (10, "lora_of_transformers_beside_a_monitor", "huggingface/peft#1827", "plain names; λ of what is trained"),
    (10, "names_through_compiled_averaged_and_parallel_models", "pytorch/pytorch#101107", "as without wrappers"),
    (10, "a_wrapper_nobody_knows", "huggingface/peft#1827", "undone whole, or refused and left as it was"),
    (10, "residual_blocks_of_somebody_elses_model", "huggingface/peft#932", "folded where exact, else said"),
    (11, "a_target_encoder_copied_from_a_leaky_model", "huggingface/accelerate#1971", "leaky, or plain and said once"),
    (11, "a_part_that_is_saved_whole", "VainF/Torch-Pruning#374", "leaky, or plain and said once"),
    (11, "a_leaky_model_called_with_other_weights", "pytorch/functorch#488", "leaky steps with those weights"),
    (11, "a_leaky_model_that_is_exported_or_traced", "pytorch/pytorch#105445", "the leaky function, or refused"),
    (11, "a_leaky_model_that_is_quantised", "huggingface/accelerate#1971", "the leaky function, or said"),
    (12, "a_student_and_a_teacher_that_are_both_leaky", "Lightning-Universe/lightning-bolts#407", "the trained one"),
    (12, "two_leaky_networks_that_are_both_trained", "Lightning-AI/pytorch-lightning#594", "refused: say `path`"),
    (13, "sharpness_aware_steps", "davda54/sam#31", "adapts at the inner steps, or says that there are none"),
    (13, "sharpness_aware_steps_in_lightning", "Lightning-AI/pytorch-lightning#16143", "likewise, and readings"),
    (13, "momenta_of_a_sharpness_aware_step", "davda54/sam#31", "those of the second pass"),
    (13, "steps_that_a_scaler_skips", "huggingface/accelerate#499", "do not adapt"),
    (13, "half_steps_that_hold_no_optimizer", "davda54/sam#42", "nothing adapts, and that is said once"),
    (13, "an_optimizer_that_accelerate_has_prepared", "huggingface/accelerate#2828", "as in a plain loop"),
    (13, "lookahead_of_timm_and_its_like", "kozistr/pytorch_optimizer#200", "adapts, or a clear error"),
    (14, "fewer_batches_than_log_every_n_steps", "rhasspy/piper#664", "one true sentence"),
    (14, "trainers_that_log_nothing", "CAREamics/careamics#837", "one true sentence, or a reading"),
    (14, "predictions", "CAREamics/careamics#837", "one true sentence"),
    (15, "two_validation_loaders", "Lightning-AI/pytorch-lightning#5701", "a reading each; pooled where asked"),
    (15, "averaging_weights_with_a_pass_for_batch_norms", "Lightning-AI/pytorch-lightning#21347", "no training batch"),
    (16, "weight_decay_on_the_blocks_alone", "Lightning-Universe/lightning-bolts#407", "λ of the blocks found"),
    (16, "several_weight_decays_and_no_layers_named", "Lightning-AI/pytorch-lightning#594", "energies, one warning"),
    (17, "two_views_of_one_batch", "Lightning-Universe/lightning-bolts#407", "rows of both, each with its gradient"),
    (17, "views_of_several_sizes", "lavoiems/simplicial-embeddings#4", "rows of all, each with its gradient"),
    (17, "one_block_run_again_and_again", "guillaume-be/rust-bert#246", "refused: how often, before why"),
    (17, "a_block_called_by_itself_on_other_data", "lucidrains/byol-pytorch#79", "right, or refused"),
    (17, "an_adapter_beside_two_views", "Lightning-Universe/lightning-bolts#407", "step-sizes of the joined batch"),
    (18, "warnings_in_the_second_fit_of_a_notebook", "dask/dask#4435", "each once a fit, in every fit"),
    (18, "batches_that_fail_for_another_reason_later", "pyiron/pyiron#751", "each reason once"),
    (18, "step_sizes_left_as_they_are_in_every_fit", "dask/dask#4435", "once a fit, with the remedy"),
    (19, "swin_of_timm", "huggingface/pytorch-image-models#1438", "blocks of all stages; the last axis is the width"),
    (19, "convnext_of_timm", "huggingface/pytorch-image-models#1438", "blocks of all stages, as segments"),
    (20, "dropout_and_drop_path_are_said_once", "huggingface/pytorch-image-models#2118", "once, where it is active"),
    (21, "an_autoencoder_of_a_tutorial", "kozistr/pytorch_optimizer#200", "what was looked for and seen; true names"),
    (21, "a_flat_stack_of_a_tutorial", "kozistr/pytorch_optimizer#200", "read as a plain stack"),
]
# fmt: on

MODULES = (loops_passes, loops_steps, loops_said, loops_structure, loops_samples, loops_state, loops_leaky)


class Row(NamedTuple):
    """A situation."""

    kind: int
    name: str
    source: str
    must: str


ROWS = [Row(*row) for row in LOOPS]


def situations() -> dict[str, Callable[[], None]]:
    """Every situation by name: what the modules define that takes nothing and is nobody's helper."""
    return {
        name: function
        for module in MODULES
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
        and not inspect.signature(function).parameters
    }


def test_rows_and_situations_belong_together():
    names = [row.name for row in ROWS]
    assert sorted(names) == sorted(set(situations()))
    assert {row.kind for row in ROWS} == set(KINDS)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", row.source) for row in ROWS)
    assert [row.kind for row in ROWS] == sorted(row.kind for row in ROWS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind}-{row.name}")
def test_what_must_happen(row):
    situations()[row.name]()
