"""Models of Hugging Face are saved and loaded again, and their caches work."""

import copy

import pytest
import torch
from torch import nn

from lightning_leaky.dropping import drop_layers
from lightning_leaky.dropping.rebuilding import origins_of
from lightning_leaky.dropping.stacks import stacks_of
from tests.dropping.helpers import Skipping, outputs, same, skipped

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}
TEXT = {**SIZES, "num_hidden_layers": 4, "num_key_value_heads": 1, "head_dim": 8}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 2, "vocab_size": 50}
FULL, SLIDING = "full_attention", "sliding_attention"


def tokens(length=7):
    return torch.randint(5, 45, (2, length))


def texts():
    return {"input_ids": tokens(), "attention_mask": torch.ones(2, 7, dtype=torch.long)}


def pairs():
    return {"input_ids": tokens(), "decoder_input_ids": tokens(5)}


def images():
    return {"pixel_values": torch.randn(2, 3, 8, 8)}


def made(name, config, **settings):
    """A model with weights far from zero, so that every block says something."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def gpt2(**others):
    return made("GPT2LMHeadModel", "GPT2Config", n_layer=4, n_embd=16, n_head=2, vocab_size=50, **ENDS, **others)


def llama(**others):
    return made("LlamaForCausalLM", "LlamaConfig", **TEXT, **ENDS, **others)


def gemma(**others):
    types = [SLIDING, FULL, SLIDING, FULL]
    return made("Gemma3ForCausalLM", "Gemma3TextConfig", **TEXT, sliding_window=4, layer_types=types, **ENDS, **others)


def gemma_of_images_and_texts():
    """A configuration inside of another, beside one of a stack that is as deep."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
    text = {**TEXT, "sliding_window": 4, "layer_types": [SLIDING, FULL, SLIDING, FULL]}
    config = {"text_config": text, "vision_config": {**vision, "image_size": 8, "patch_size": 4}}
    numbers = {"mm_tokens_per_image": 4, "boi_token_index": 46, "eoi_token_index": 47, "image_token_index": 48}
    return made("Gemma3ForConditionalGeneration", "Gemma3Config", **config, **numbers, **ENDS)


def bert():
    return made("BertModel", "BertConfig", **SIZES, num_hidden_layers=4)


def t5(**others):
    ends = {"pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 0}
    return made("T5ForConditionalGeneration", "T5Config", **T5, **ends, **others)


def bart():
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIDES.items()}
    return made("BartForConditionalGeneration", "BartConfig", d_model=16, vocab_size=50, **sizes)


def vit():
    return made("ViTModel", "ViTConfig", **SIZES, num_hidden_layers=4, image_size=8, patch_size=4)


SIDES = {"layers": 4, "ffn_dim": 32, "attention_heads": 2}

MODELS = {
    "gpt2": (gpt2, ["transformer.h.0", "transformer.h.2"], texts, {"n_layer": 2}),
    "llama": (llama, ["model.layers.0", "model.layers.3"], texts, {"num_hidden_layers": 2}),
    "gemma": (gemma, ["model.layers.0"], texts, {"num_hidden_layers": 3, "layer_types": [FULL, SLIDING, FULL]}),
    "bert": (bert, ["encoder.layer.1"], texts, {"num_hidden_layers": 3}),
    "t5, encoder": (t5, ["encoder.block.2"], pairs, {"num_layers": 3, "num_decoder_layers": 4}),
    "t5, decoder": (t5, ["decoder.block.1"], pairs, {"num_layers": 4, "num_decoder_layers": 3}),
    "t5, both": (
        t5,
        ["encoder.block.1", "decoder.block.2", "decoder.block.3"],
        pairs,
        {"num_layers": 3, "num_decoder_layers": 2},
    ),
    "bart, decoder": (bart, ["model.decoder.layers.0"], pairs, {"encoder_layers": 4, "decoder_layers": 3}),
    "vit": (vit, ["layers.0", "layers.1", "layers.3"], images, {"num_hidden_layers": 1}),
}


def loaded(model, folder):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


@pytest.mark.parametrize(("make", "gone", "batch", "numbers"), MODELS.values(), ids=MODELS)
def test_saved_and_loaded_again(make, gone, batch, numbers, tmp_path):
    model, inputs = make(), batch()
    want, before = skipped(model, gone, inputs), outputs(model, inputs)
    drop_layers(model, gone, inputs)
    assert not torch.equal(before, want)
    assert same(outputs(model, inputs), want)
    assert {key: getattr(model.config, key) for key in numbers} == numbers
    again = loaded(model, tmp_path)
    assert same(outputs(again, inputs), want)
    assert again.config.to_dict() == type(model).from_pretrained(tmp_path).config.to_dict()
    assert {name: vars(part).get("layer_idx") for name, part in again.named_modules()} == {
        name: vars(part).get("layer_idx") for name, part in model.named_modules()
    }


@pytest.mark.parametrize(("make", "gone", "batch"), [one[:3] for one in MODELS.values()], ids=MODELS)
def test_what_is_built_anew_returns_the_same(make, gone, batch):
    """So that what follows is checked at all."""
    model, inputs = make(), batch()
    for stack in stacks_of(model, gone):
        (origin,) = origins_of(model, inputs, stack)
        assert origin.module is model


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "t5, decoder", "t5, both"])
def test_a_cache_changes_no_token(name, tmp_path):
    """Of T5 the cache has a layer for each block of the encoder, so that the decoder may not be the deeper one."""
    make, gone, _, _ = MODELS[name]
    model, ids = make(), tokens()
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    before = model.generate(ids, **settings)
    with Skipping(model, gone):
        want = model.generate(ids, use_cache=False, **settings)
    drop_layers(model, gone, pairs() if model.config.is_encoder_decoder else {"input_ids": ids})
    assert not torch.equal(before, want)
    for one in (model, loaded(model, tmp_path)):
        assert torch.equal(one.generate(ids, use_cache=True, **settings), want)


def test_every_configuration_of_the_model_says_so():
    """T5 gives each stack a copy of it."""
    model = t5()
    kept = model.encoder.config
    drop_layers(model, "decoder.block.1", pairs())
    assert model.decoder.config.num_layers == model.config.num_decoder_layers == 3
    assert model.encoder.config.num_layers == model.config.num_layers == 4
    assert model.encoder.config is kept


def test_a_configuration_inside_of_another(tmp_path):
    model, inputs = gemma_of_images_and_texts(), texts()
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    gone = "model.language_model.layers.2"
    want = skipped(model, [gone], inputs)
    drop_layers(model, gone, inputs)
    assert same(outputs(loaded(model, tmp_path), inputs), want)
    assert model.config.text_config.layer_types == [SLIDING, FULL, FULL]
    assert model.config.text_config.num_hidden_layers == 3
    assert model.config.vision_config.num_hidden_layers == 4
    assert model.model.language_model.config is model.config.text_config


def test_states_of_all_blocks_may_be_fewer():
    model, inputs = llama(), {**texts(), "output_hidden_states": True}
    drop_layers(model, "model.layers.1", inputs)
    assert len(model(**inputs).hidden_states) == 4


def test_states_of_two_stacks():
    model, inputs = t5(), {**pairs(), "output_hidden_states": True}
    drop_layers(model, ["encoder.block.1", "decoder.block.1", "decoder.block.2"], inputs)
    states = model(**inputs)
    assert (len(states.encoder_hidden_states), len(states.decoder_hidden_states)) == (4, 3)


def test_dropped_twice():
    model, inputs = llama(), texts()
    want = skipped(model, ["model.layers.1", "model.layers.2"], inputs)
    drop_layers(model, "model.layers.1", inputs)
    drop_layers(model, "model.layers.1", inputs)
    assert same(outputs(model, inputs), want)
    assert model.config.num_hidden_layers == 2


class Written(transformers.LlamaConfig):
    """Is written under another name than it is read by a model."""

    model_type = "written"

    def to_dict(self):
        return {"total_blocks": getattr(self, "total_blocks", None), **TEXT, **ENDS, "num_hidden_layers": 1}

    @classmethod
    def from_dict(cls, values, **others):
        config = super().from_dict({**values, "num_hidden_layers": values["total_blocks"]})
        config.total_blocks = values["total_blocks"]
        return config


def test_what_is_written_is_what_is_changed():
    config = Written(**TEXT, **ENDS)
    config.total_blocks = 4
    model = transformers.LlamaForCausalLM(config)
    drop_layers(model, "model.layers.1", texts())
    assert model.config.total_blocks == model.config.num_hidden_layers == 3


REFUSED = {
    "position bias": (t5, "encoder.block.0", pairs, "'encoder.block.1' takes what 'encoder.block.0' makes"),
    "scaled by place": (
        lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
        "transformer.h.1",
        texts,
        "GPT2LMHeadModel could not be loaded again",
    ),
    "state in question": (
        t5,
        "decoder.block.1",
        lambda: {"input_ids": (ids := tokens()), "decoder_input_ids": ids},
        'say `state`, as in state="hidden"',
    ),
}


@pytest.mark.parametrize(("make", "gone", "batch", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(make, gone, batch, reason):
    model, inputs = make(), batch()
    config, state = copy.deepcopy(model.config.to_dict()), copy.deepcopy(model.state_dict())
    want = outputs(model, inputs)
    with pytest.raises(ValueError, match=reason):
        drop_layers(model, gone, inputs)
    assert model.config.to_dict() == config
    assert model.state_dict().keys() == state.keys()
    assert [block.attn.layer_idx for block in model.transformer.h] == [0, 1, 2, 3] if make is not t5 else True
    assert same(outputs(model, inputs), want)


def test_a_state_that_is_named():
    model, ids = t5(), tokens()
    drop_layers(model, "decoder.block.1", {"input_ids": ids, "decoder_input_ids": ids}, state="hidden_states")
    assert len(model.decoder.block) == 3


@pytest.mark.slow
def test_adapted_by_lora():
    """No model is built anew with the adapters from the configuration, which describes the model inside."""
    peft = pytest.importorskip("peft")
    adapted = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    model, inputs = peft.get_peft_model(llama(), adapted).eval(), texts()
    with pytest.raises(ValueError, match="stand in a model with BaseTunerLayer; drop first, or merge adapters"):
        drop_layers(model, "model.layers.1", inputs)
    model = model.merge_and_unload()
    want = skipped(model, ["model.layers.1"], inputs)
    drop_layers(model, "model.layers.1", inputs)
    assert same(outputs(model, inputs), want)
    assert model.config.num_hidden_layers == 3
