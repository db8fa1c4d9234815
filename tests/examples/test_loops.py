"""Loops that are not Lightning's Trainer: what the examples of Fabric and of the Hugging Face Trainer read."""

import pytest
import torch
from torch import nn

from examples import fabric_loop, hugging_face_trainer
from examples.hugging_face_trainer import PathCallback, sentences
from lightning_leaky import PathMonitor

pytestmark = pytest.mark.slow  # imports transformers
transformers = pytest.importorskip("transformers")


def test_the_loop_with_fabric_fits_adapts_and_reads(capsys):
    readings = fabric_loop.main(num_epochs=50, devices="1")
    assert {"hamiltonian", "criticality_residual", "cost_of_identity"} <= readings.quantities.keys()
    assert readings.is_finite()
    said = capsys.readouterr().out
    assert said.count("cost of this batch") == 2
    assert float((readings.step_sizes - 0.1).abs().max()) > 0.01


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    config = transformers.BertConfig(**sizes, intermediate_size=64, **dropout)
    return transformers.BertForSequenceClassification(config)


def trained(folder, callback_settings=None, **changes):
    """A trainer after six steps, with the callback unless there are no settings."""
    torch.manual_seed(1)
    settings = {"per_device_train_batch_size": 4, "logging_steps": 2, "max_steps": 6, "use_cpu": True, "report_to": []}
    arguments = transformers.TrainingArguments(str(folder), save_strategy="no", **(settings | changes))
    trainer = transformers.Trainer(bert(), arguments, train_dataset=sentences(100))
    if callback_settings is not None:
        trainer.add_callback(PathCallback(trainer, **callback_settings))
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_readings_stand_beside_the_loss_in_the_logs_and_do_not_change_it(tmp_path, hooks_of, accumulate):
    """At the same steps; the losses are the same bits, and no hook is left."""
    alone = trained(tmp_path, gradient_accumulation_steps=accumulate)
    watched = trained(tmp_path, {"every_n_steps": 2}, gradient_accumulation_steps=accumulate)
    losses = [
        [(row["step"], row["loss"]) for row in one.state.log_history if "loss" in row] for one in (alone, watched)
    ]
    assert losses[0] == losses[1]
    read = [row for row in watched.state.log_history if "cost_of_identity/layer_01" in row]
    assert [row["step"] for row in read] == [step for step, _ in losses[0]] == [2, 4, 6]
    assert all(f"kinetic_energy/layer_{number:02}" in row for row in read for number in (1, 2, 3))
    assert hooks_of(watched.model) == hooks_of(alone.model)


@pytest.mark.parametrize(("accumulate", "extra"), [(1, ["momentum_norm"]), (2, [])])
def test_the_callback_reads_what_a_loop_by_hand_reads(tmp_path, accumulate, extra):
    """Of the real positions of all micro-batches of the last step; to rounding, because the trainer's loss differs."""
    quantities = ["cost_of_identity", "kinetic_energy", *extra]
    settings = {"quantities": quantities, "every_n_steps": 3, "weight_decay": 0.1}
    changes = {"gradient_accumulation_steps": accumulate, "max_steps": 3, "learning_rate": 0.0}
    trainer = trained(tmp_path, settings, **changes)
    callback = next(one for one in trainer.callback_handler.callbacks if isinstance(one, PathCallback))

    torch.manual_seed(1)
    model = bert()
    other = transformers.Trainer(model, trainer.args, train_dataset=sentences(100))
    batches = [batch for batch, _ in zip(other.get_train_dataloader(), range(3 * accumulate), strict=False)]
    monitor = PathMonitor(model, "bert.encoder.layer.*", quantities, 1, weight_decay=0.1)
    model.train()
    for batch in batches[-accumulate:]:
        with monitor.batch():
            model(**batch).loss.backward()
    expected, found = monitor.read(), callback.monitor.readings
    assert found.names == expected.names == tuple(f"bert.encoder.layer.{index}" for index in range(3))
    assert found.num_samples == (sum(int(batch["attention_mask"].sum()) for batch in batches[-accumulate:]),) * 3
    for name in quantities:
        assert found[name].isfinite().all()
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=0)


def test_the_example_with_the_hugging_face_trainer_reads():
    callback = hugging_face_trainer.main(max_steps=20)
    assert len(callback.monitor.readings.names) == 4
    assert callback.monitor.readings.is_finite()
