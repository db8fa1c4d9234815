"""The LightningModule: its objective, its metrics, its single-method overrides, and that it trains as it says."""

import inspect
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanAbsoluteError, MetricCollection

from lightning_leaky import LeakyResNetModule, TeacherDataModule, measure_path
from lightning_leaky.models import NetworkSettings
from lightning_leaky.module import default_learning_rate
from tests.callbacks.helpers import Recorder


def test_the_regression_cost_sums_outputs_and_averages_samples(make_module):
    outputs, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    assert float(make_module().cost(outputs, targets)) == pytest.approx((1 + 4 + 16) / 2)


def test_the_loss_adds_weight_decay_times_the_l2_term(make_module):
    module = make_module(weight_decay=0.7)
    inputs, targets = torch.randn(5, 3), torch.randn(5, 2)
    outputs = module(inputs)
    expected = module.cost(outputs, targets) + 0.7 * module.network.regularizer()
    torch.testing.assert_close(module.loss(outputs, targets), expected)


def test_critical_weights_follow_from_the_momentum(make_module):
    """∂loss/∂W_l = λ ρ_l (W_l / L̃ − B_lᵀ σ(A_{l−1})): loss, λ, ρ and L̃ all enter as THEORY says."""
    module = make_module(weight_decay=0.7, step_sizes=[0.1, 0.2, 0.3, 0.4]).double()
    inputs, targets = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    module.loss(module(inputs), targets).backward()
    path = module.network.representations(inputs)
    steps = list(path.unbind())
    cost = module.cost(module.network.output_map(steps[-1]), targets)
    (last,) = torch.autograd.grad(cost, steps[-1])
    momentum, layer, rho = -last / 0.7, module.network.layers[-1], module.network.step_sizes[-1]
    expected = 0.7 * rho * (layer.weight / 2.0 - momentum.T @ steps[-2].relu())
    torch.testing.assert_close(layer.weight.grad, expected)


def test_inputs_of_more_dimensions_are_flattened(make_module):
    module, images = make_module(in_features=12), torch.randn(5, 3, 4)
    torch.testing.assert_close(module(images), module.network(images.reshape(5, 12)))


def test_classification_uses_cross_entropy_and_accuracy(make_module, make_trainer):
    module = make_module(task="classification", out_features=4)
    inputs, classes = torch.randn(10, 3), torch.arange(10) % 4
    torch.testing.assert_close(module.cost(module(inputs), classes), F.cross_entropy(module(inputs), classes))
    (logged,) = make_trainer().validate(module, DataLoader(TensorDataset(inputs, classes), 4), verbose=False)
    right = (module(inputs).argmax(-1) == classes).float().mean()
    assert logged["val/accuracy"] == pytest.approx(float(right))
    assert logged["val/cost"] == pytest.approx(float(module.cost(module(inputs), classes).detach()), rel=1e-5)


def test_validation_and_test_are_over_the_whole_set(make_module, make_data, make_trainer):
    """The last batch is smaller; a mean of batch means would differ."""
    module, data = make_module(), make_data(batch_size=4)
    trainer = make_trainer()
    for run, stage, split in ((trainer.validate, "val", "val"), (trainer.test, "test", "test")):
        (logged,) = run(module, datamodule=data, verbose=False)
        inputs, targets = data.splits[split].tensors
        errors = (module(inputs) - targets).square().detach()
        assert logged[f"{stage}/mse"] == pytest.approx(float(errors.mean()), rel=1e-5)
        assert logged[f"{stage}/cost"] == pytest.approx(float(errors.sum(-1).mean()), rel=1e-5)


def test_predicts_outputs_of_pairs_and_of_bare_inputs(make_module, make_data, make_trainer):
    module, data = make_module(), make_data(batch_size=4)
    predicted = torch.cat(make_trainer().predict(module, datamodule=data))
    inputs = data.splits["test"].tensors[0]
    torch.testing.assert_close(predicted, module(inputs).detach())
    torch.testing.assert_close(torch.cat(make_trainer().predict(module, DataLoader(inputs, 4))), predicted)


# Overrides, one method at a time.


def losses_of(module, data, trainer_of):
    recorder = Recorder()
    trainer = trainer_of(recorder, max_epochs=3)
    trainer.fit(module, datamodule=data)
    return torch.stack(recorder.losses), trainer


def test_cost_can_be_overridden(make_module, make_data, make_trainer):
    class Absolute(LeakyResNetModule):
        def cost(self, outputs, targets):
            return (outputs - targets).abs().mean()

    module, data = make_module(Absolute, weight_decay=0.0), make_data()
    losses, trainer = losses_of(module, data, make_trainer)
    inputs, targets = data.splits["train"].tensors
    torch.testing.assert_close(losses[0], (make_module()(inputs) - targets).abs().mean().detach())
    inputs, targets = data.splits["val"].tensors
    cost = (module(inputs) - targets).abs().mean().detach().double()
    torch.testing.assert_close(trainer.callback_metrics["val/cost"], cost, rtol=1e-6, atol=1e-6)


def test_loss_can_be_overridden(make_module, make_data, make_trainer):
    class Tenfold(LeakyResNetModule):
        def loss(self, outputs, targets):
            return 10 * super().loss(outputs, targets)

    losses, _ = losses_of(make_module(), make_data(), make_trainer)
    tenfold, _ = losses_of(make_module(Tenfold), make_data(), make_trainer)
    torch.testing.assert_close(tenfold[0], 10 * losses[0])


def test_metrics_can_be_overridden(make_module, make_data, make_trainer):
    class Absolute(LeakyResNetModule):
        def configure_metrics(self, stage):
            return MetricCollection({"mae": MeanAbsoluteError()}, prefix=f"{stage}/")

    module, data = make_module(Absolute), make_data(batch_size=4)
    _, trainer = losses_of(module, data, make_trainer)
    inputs, targets = data.splits["val"].tensors
    torch.testing.assert_close(trainer.callback_metrics["val/mae"], (module(inputs) - targets).abs().mean().detach())
    assert "val/mse" not in trainer.callback_metrics


def test_optimizers_can_be_overridden(make_module, make_data, make_trainer):
    class Still(LeakyResNetModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    losses, trainer = losses_of(make_module(Still), make_data(), make_trainer)
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)
    assert len(losses.unique()) == 1
    assert len(losses_of(make_module(), make_data(), make_trainer)[0].unique()) == 3


def test_step_can_be_overridden(make_module, make_data, make_trainer):
    class Weighted(LeakyResNetModule):
        def step(self, batch, stage):
            inputs, targets = batch
            return super().step((inputs, torch.zeros_like(targets)), stage)

    module, data = make_module(Weighted, weight_decay=0.0), make_data()
    losses, trainer = losses_of(module, data, make_trainer)
    first = make_module()(data.splits["train"].tensors[0])
    torch.testing.assert_close(losses[0], first.square().sum(-1).mean().detach())
    last = module(data.splits["val"].tensors[0])
    torch.testing.assert_close(trainer.callback_metrics["val/mse"], last.square().mean().detach())


def test_a_step_of_ones_own_may_update_the_metrics_alone(make_module, make_data, make_trainer):
    class Own(LeakyResNetModule):
        def step(self, batch, stage):
            if stage == "train":
                return super().step(batch, stage)
            self.val_metrics.update(self(batch[0]), batch[1])
            return None

    trainer = make_trainer()
    trainer.fit(make_module(Own), datamodule=make_data())
    assert "val/mse" in trainer.callback_metrics
    assert "val/cost" not in trainer.callback_metrics


def test_metrics_start_anew_after_a_run_that_broke(make_module, make_data, make_trainer):
    class Breaking(LeakyResNetModule):
        is_broken = True

        def validation_step(self, batch, batch_idx):
            super().validation_step([torch.nan * part if self.is_broken else part for part in batch], batch_idx)
            if self.is_broken:
                raise ArithmeticError("as planned")

    module, data = make_module(Breaking), make_data()
    with pytest.raises(ArithmeticError):
        make_trainer().fit(module, datamodule=data)
    module.is_broken = False
    trainer = make_trainer(max_epochs=1)  # at the end of an epoch Lightning resets what was logged
    trainer.fit(module, datamodule=data)
    inputs, targets = data.splits["val"].tensors
    torch.testing.assert_close(trainer.callback_metrics["val/mse"], (module(inputs) - targets).square().mean().detach())


def test_a_module_can_be_fitted_after_it_was_validated(make_module, make_data, make_trainer):
    """Validation alone runs in inference mode, and makes tensors that nobody outside of it may change."""
    module, data = make_module(), make_data()
    for _ in range(2):
        make_trainer().fit(module, datamodule=data)
        (metrics,) = make_trainer().validate(module, datamodule=data, verbose=False)
        assert 0 < metrics["val/mse"] < metrics["val/cost"]


def test_a_cost_that_has_diverged_is_logged_as_such(make_module, make_data, make_trainer):
    module, data = make_module(), make_data(batch_size=4)
    torch.nn.init.constant_(module.network.output_map.weight, torch.nan)
    (metrics,) = make_trainer().validate(module, datamodule=data, verbose=False)
    assert math.isnan(metrics["val/cost"])


# Optimizer and schedule.


def test_adam_falls_to_one_percent_by_half_a_cosine(make_module, make_data, make_trainer):
    rates = []

    class Watch(Recorder):
        def on_train_batch_start(self, trainer, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_batch_end(self, *args):
            pass

    trainer = make_trainer(Watch(), max_epochs=10)
    trainer.fit(make_module(learning_rate=0.5), datamodule=make_data())
    assert isinstance(trainer.optimizers[0], torch.optim.Adam)
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0
    expected = [0.005 + 0.495 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert rates == pytest.approx(expected)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005)


def test_a_run_without_end_keeps_its_rate(make_module, make_data, make_trainer):
    class Stopping(LeakyResNetModule):
        def on_train_batch_end(self, *args):
            self.trainer.should_stop = self.global_step == 5

    trainer = make_trainer(max_epochs=-1)
    trainer.fit(make_module(Stopping, learning_rate=0.5), datamodule=make_data())
    assert trainer.global_step == 5
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(("effective_depth", "expected"), [(0.0, 1e-3), (0.5, 1e-3), (3.0, 4.5e-3), (7.0, 1.05e-2)])
def test_the_default_rate_grows_with_the_leak(make_module, effective_depth, expected):
    assert default_learning_rate(effective_depth) == pytest.approx(expected)
    assert make_module(effective_depth=effective_depth).learning_rate == pytest.approx(expected)
    assert make_module(effective_depth=effective_depth, learning_rate=0.2).learning_rate == 0.2


# Hyper-parameters.


def test_every_argument_is_a_saved_hyper_parameter(make_module):
    """Those that were not given, too: a checkpoint says what the network was."""
    hparams = dict(make_module(activation="tanh", init_noise=0.2).hparams)
    arguments = inspect.signature(LeakyResNetModule).parameters.keys() - {"network"}
    assert hparams.keys() == arguments | inspect.signature(NetworkSettings).parameters.keys()
    assert (hparams["effective_depth"], hparams["activation"], hparams["init"]) == (2.0, "tanh", "identity")


def test_every_network_argument_reaches_the_network(make_module):
    told = {"activation": "tanh", "constant_column": False, "step_sizes": [0.1, 0.2, 0.3, 0.4], "init": "plain"}
    network = make_module(**told, input_map="fixed", output_map="fixed", init_noise=0.2).network
    assert (network.width, len(network.layers), network.effective_depth) == (6, 4, 2.0)
    assert (network.activation, network.constant_column) == ("tanh", False)
    assert (network.init, network.init_noise) == ("plain", 0.2)
    torch.testing.assert_close(network.step_sizes, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert not any(linear.weight.requires_grad for linear in (network.input_map, network.output_map))


def test_unknown_arguments_are_refused_whatever_the_network_is(make_module):
    class Own(LeakyResNetModule):
        def configure_network(self):
            return torch.nn.Linear(3, 2)

    with pytest.raises(TypeError, match="widht"):
        make_module(Own, widht=3)


def test_a_subclass_may_pass_on_other_values_than_its_own(tmp_path, make_trainer, make_data):
    """Arguments of the same name are saved with the values that the subclass was given, and say nothing here."""

    class Doubled(LeakyResNetModule):
        def __init__(self, width=3, effective_depth=1.5):
            super().__init__(3, 2, width=2 * width, num_layers=4, effective_depth=2 * effective_depth)

    module, trainer = Doubled(width=5), make_trainer(max_epochs=1, enable_checkpointing=False)
    assert (module.network.width, module.network.effective_depth) == (10, 3.0)
    assert module.learning_rate == default_learning_rate(3.0)
    trainer.fit(module, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Doubled.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.network.width == 10
    assert all(map(torch.equal, again.parameters(), module.parameters()))


@pytest.mark.parametrize(
    ("name", "wrong"), [("task", "ranking"), ("learning_rate", 0.0), ("weight_decay", -0.1), ("effective_depth", -1.0)]
)
def test_wrong_arguments_are_named(make_module, name, wrong):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make_module(**{name: wrong})


# Training.


def relative_cost(make_trainer, **changes) -> float:
    """Training cost after 250 full-batch steps, relative to the variance of the targets."""
    torch.manual_seed(0)
    sizes = {"in_features": 6, "out_features": 6, "width": 16, "num_layers": 14, "weight_decay": 1e-3}
    module = LeakyResNetModule(**(sizes | changes))
    data = TeacherDataModule(dims=(6, 2, 6), num_train=60, num_val=2, num_test=2, hidden=12)
    make_trainer(max_epochs=250, limit_val_batches=0).fit(module, datamodule=data)
    inputs, targets = data.splits["train"].tensors
    return float(module.cost(module(inputs), targets).detach() / targets.square().sum(-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("effective_depth", [0.0, 1.0, 3.0, 7.0, 12.0])
def test_the_default_rate_trains_at_every_leak(make_trainer, effective_depth):
    assert relative_cost(make_trainer, effective_depth=effective_depth) < 0.5


@pytest.mark.slow
def test_plain_weights_collapse_where_identity_weights_train(make_trainer):
    """At L̃ = 7 the signal of small random weights is gone before it reaches the output."""
    assert relative_cost(make_trainer, effective_depth=7.0, init="plain") > 0.95
    assert relative_cost(make_trainer, effective_depth=7.0, init="identity") < 0.1


def readings_after_training(activation):
    """Readings of a network of L̃ = 3 trained to (nearly) a critical point of its objective, in float64."""
    torch.manual_seed(0)
    data = TeacherDataModule(dims=(4, 2, 4), num_train=40, num_val=2, num_test=2, hidden=8)
    data.setup()
    inputs, targets = (tensor.double() for tensor in data.splits["train"].tensors)
    module = LeakyResNetModule(
        4, 4, width=12, num_layers=16, effective_depth=3.0, weight_decay=0.2, activation=activation
    ).double()

    def closure():
        optimizer.zero_grad()
        loss = module.loss(module(inputs), targets)
        loss.backward()
        return loss

    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.step(closure)
    optimizer = torch.optim.LBFGS(
        module.parameters(), max_iter=1000, history_size=50, line_search_fn="strong_wolfe", tolerance_change=0
    )
    optimizer.step(closure)
    return measure_path(module, [(inputs, targets)], cost=module.cost, weight_decay=0.2)


@pytest.fixture(scope="module")
def trained():
    return readings_after_training("relu")


def spread(values):
    return float(values.max() - values.min())


@pytest.mark.slow
def test_training_ends_at_a_critical_point():
    """A smooth network reaches it: the residual is 0, up to what the optimizer leaves of the gradient."""
    assert float(readings_after_training("gelu")["criticality_residual"].max()) < 1e-4


@pytest.mark.slow
def test_most_layers_end_near_a_critical_point_with_kinks_too(trained):
    """An optimizer stops at a kink of the ReLU, where no gradient is 0: which layers it holds up, rounding decides."""
    assert float(trained["criticality_residual"].median()) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("layers", [slice(None), slice(8, None)], ids=["whole path", "second half"])
def test_the_hamiltonian_is_conserved_along_the_path(trained, layers):
    """Its two parts nearly cancel: each varies many times as much as their sum, also away from the violent start.

    The sum is the momentum form, from gradients alone; the parts are kinetic and potential energy, from
    representations alone. That one is constant where the others are not is a statement on the whole chain.
    """
    varies = spread(trained["hamiltonian"][layers])
    assert varies < spread(trained["kinetic_energy"][layers]) / 5
    assert varies < spread(trained["potential_energy"][layers]) / 5


@pytest.mark.slow
def test_both_forms_of_the_hamiltonian_agree_at_a_critical_point(trained):
    """Up to the stabiliser γ and the discretisation, where kinetic and potential energy themselves reach hundreds."""
    difference = (trained["hamiltonian"] - trained["energy_hamiltonian"]).abs().max()
    assert float(difference) < 0.02 * float(trained["potential_energy"].abs().max())


def test_adam_is_fused_where_all_parameters_are_on_the_cpu():
    """Elsewhere torch chooses: Lightning refuses to clip the gradients of a fused optimizer under an fp16 scaler."""
    module = LeakyResNetModule(3, 2, width=4, num_layers=2, effective_depth=1.0)
    assert module.configure_optimizers()["optimizer"].defaults["fused"] is True
    module.network.to("meta")
    assert module.configure_optimizers()["optimizer"].defaults["fused"] is None
