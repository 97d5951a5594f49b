"""The training loop: it learns, it repeats itself exactly, it resumes exactly, and it leaves things as they should be."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featherweight.errors import DataError, RequestError, TrainingError
from featherweight.graph.constraint import Constraint, constrain
from featherweight.training.loaders import TensorLoader
from featherweight.training.loop import OPTIMIZERS, SCHEDULES, Tuning, evaluate, fit, learning_rate_at, mean_loss, predict


def blobs(samples: int = 60, *, shuffle: bool = True, augment: Any = None) -> TensorLoader:
    """Three classes of points in 8 dimensions, easy to tell apart."""
    generator = torch.Generator().manual_seed(1)
    centres = 3 * torch.randn(3, 8, generator=generator)
    targets = torch.arange(samples) % 3
    inputs = centres[targets] + torch.randn(samples, 8, generator=generator)
    return TensorLoader(inputs, targets, batch_size=16, shuffle=shuffle, augment=augment)


def network() -> nn.Sequential:
    """With all that has a state of its own: batch norm statistics and dropout."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Mask(Constraint):
    """Keeps a part of the weights at zero; the part is a buffer that may grow."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(shape))

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        return original * self.mask

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


def masked_network() -> nn.Sequential:
    model = network()
    constrain(model, "0.weight", Mask(model[0].weight.shape))
    return model


def grow_mask(model: nn.Module, done: float) -> None:
    mask = model.get_submodule("0.parametrizations.weight.0").mask
    mask.view(-1)[: round(done * 64)] = 0


# --- what one step does, computed another way


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_nesterov_by_hand(weight_decay: float) -> None:
    """v = 0.9 v + g; w -= rate (g + 0.9 v), Sutskever et al. (2013) as torch documents it."""
    loader = blobs(48, shuffle=False)
    model = nn.Linear(8, 3)
    weight, bias = (p.detach().double().clone().requires_grad_() for p in model.parameters())
    fit(model, loader, Tuning(epochs=2, optimizer="sgd", learning_rate=0.05, schedule="constant", weight_decay=weight_decay))
    velocities = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for inputs, targets in [*loader, *loader]:
        gradients = torch.autograd.grad(cross_entropy(inputs.double() @ weight.T + bias, targets), (weight, bias))
        with torch.no_grad():
            for parameter, velocity, gradient in zip((weight, bias), velocities, gradients, strict=True):
                full = gradient + weight_decay * parameter
                velocity.mul_(0.9).add_(full)
                parameter -= 0.05 * (full + 0.9 * velocity)
    assert torch.allclose(model.weight.double(), weight, atol=1e-5)
    assert torch.allclose(model.bias.double(), bias, atol=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_learns(optimizer: str) -> None:
    model, loader = network(), blobs()
    rate = 0.05 if optimizer == "sgd" else 0.01
    assert evaluate(model, loader) < 0.8
    fit(model, loader, Tuning(epochs=10, optimizer=optimizer, learning_rate=rate))
    assert evaluate(model, loader) > 0.95


def test_loss_is_the_one_given() -> None:
    model = nn.Linear(8, 1)
    fit(model, blobs(), Tuning(epochs=60, learning_rate=0.1), loss=lambda outputs, _: ((outputs - 7) ** 2).mean())
    outputs, _ = predict(model, blobs())
    assert abs(outputs.mean() - 7) < 0.5
    assert outputs.std() < 2


# --- schedules


def test_learning_rates_by_hand() -> None:
    def rates(**options: Any) -> list[float]:
        return [learning_rate_at(Tuning(learning_rate=2.0, **options), step, 4) for step in range(4)]

    assert rates(schedule="constant") == [2.0, 2.0, 2.0, 2.0]
    assert rates(schedule="linear") == [2.0, 1.5, 1.0, 0.5]
    assert rates(schedule="cosine") == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)])
    assert rates(schedule="constant", warmup=0.75) == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.99])
def test_learning_rate_is_positive_and_reaches_its_top(schedule: str, warmup: float) -> None:
    tuning = Tuning(learning_rate=0.5, schedule=schedule, warmup=warmup)
    rates = [learning_rate_at(tuning, step, 50) for step in range(50)]
    assert min(rates) > 0
    if round(50 * warmup) < 50:
        assert max(rates) == 0.5
    assert rates[: round(50 * warmup)] == sorted(rates[: round(50 * warmup)])


def test_fit_follows_the_schedule() -> None:
    """With a gradient of one everywhere, each step of plain descent moves by the rate; momentum is what remains to undo."""
    model = nn.Linear(1, 1, bias=False)
    weights = [model.weight.item()]
    fit(
        model,
        [(torch.ones(1, 1), torch.zeros(1))] * 3,
        Tuning(epochs=2, optimizer="sgd", learning_rate=0.01, schedule="linear", warmup=0.5),
        loss=lambda outputs, _: outputs.sum(),
        after_step=lambda m, _: weights.append(m.weight.item()),
    )
    velocities = [sum(0.9**k for k in range(n)) for n in range(1, 7)]
    moves = [(a - b) / (1 + 0.9 * v) for a, b, v in zip(weights, weights[1:], velocities, strict=False)]
    assert moves == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.02 / 3, 0.01 / 3], rel=1e-3)


# --- the same run twice, and a run in two parts


def test_same_seed_same_weights_whatever_ran_before() -> None:
    def run(seed: int, before: int) -> dict[str, torch.Tensor]:
        model = network()
        torch.manual_seed(before)
        fit(model, blobs(augment=lambda x: x + 0.1 * torch.randn_like(x)), Tuning(epochs=2), seed=seed)
        return state(model)

    assert same(run(0, before=1), run(0, before=2))
    assert not same(run(0, before=1), run(1, before=1))


def test_epochs_have_different_orders() -> None:
    seen: list[int] = []
    loader = TensorLoader(torch.arange(30.0)[:, None], torch.zeros(30, dtype=torch.int64), batch_size=30, shuffle=True)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(int(outputs.argmax()))
        return outputs.sum() * 0.0

    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    fit(model, loader, Tuning(epochs=6), loss=loss)
    assert len(set(seen)) > 1


def test_random_state_and_modes_are_put_back() -> None:
    model = network()
    model[1].eval()
    before = torch.get_rng_state()
    fit(model, blobs(), Tuning())
    evaluate(model, blobs(shuffle=False))
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert model.training


class Killed(BaseException):
    """Like KeyboardInterrupt, no Exception."""


def killed_after(epochs: float) -> Callable[..., None]:
    def progress(task: str, done: int, total: int, note: str = "") -> None:
        if done >= epochs * total / 4:
            raise Killed

    return progress


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("moment", [1.5, 2.25, 3.75], ids="after {} epochs".format)
def test_resumed_run_ends_bit_identical(tmp_path: Path, optimizer: str, moment: float) -> None:
    """With dropout, batch norm, momentum, a warm-up, augmentation and a mask that grows."""
    tuning = Tuning(epochs=4, optimizer=optimizer, learning_rate=0.02, weight_decay=0.01, warmup=0.2)
    loader = blobs(augment=lambda x: x + 0.1 * torch.randn_like(x))
    whole = masked_network()
    fit(whole, loader, tuning, seed=3, after_step=grow_mask)

    checkpoint = tmp_path / "new folder" / "run.checkpoint"
    broken = masked_network()
    with pytest.raises(Killed):
        fit(broken, loader, tuning, seed=3, after_step=grow_mask, checkpoint=checkpoint, progress=killed_after(moment))
    torch.manual_seed(99)
    resumed, steps = masked_network(), []

    def after_step(model: nn.Module, done: float) -> None:
        steps.append(done)
        grow_mask(model, done)

    fit(resumed, loader, tuning, seed=3, after_step=after_step, checkpoint=checkpoint)
    assert same(state(resumed), state(whole))
    assert steps[0] == pytest.approx((int(moment) * len(loader) + 1) / (4 * len(loader)))
    assert steps[-1] == 1.0
    assert [path.name for path in checkpoint.parent.iterdir()] == ["run.checkpoint"]


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, second = network(), network()
    fit(first, blobs(), Tuning(epochs=2), checkpoint=tmp_path / "c")
    fit(second, blobs(), Tuning(epochs=2), checkpoint=tmp_path / "c", progress=killed_after(0))
    assert same(state(first), state(second))


@pytest.mark.parametrize("change", ["tuning", "seed", "start", "frozen", "batches"])
def test_checkpoint_of_another_run_is_not_resumed(tmp_path: Path, change: str) -> None:
    def run(checkpoint: Path | None) -> dict[str, torch.Tensor]:
        model = network()
        if change == "start":
            with torch.no_grad():
                model[0].weight[0, 0] += 1e-3
        if change == "frozen":
            model[4].weight.requires_grad_(False)
        tuning = Tuning(epochs=1, learning_rate=0.1 if change == "tuning" else 1e-3)
        fit(model, blobs(30 if change == "batches" else 60), tuning, seed=int(change == "seed"), checkpoint=checkpoint)
        return state(model)

    checkpoint = tmp_path / "c"
    fit(network(), blobs(), Tuning(epochs=1), checkpoint=checkpoint)
    assert same(run(checkpoint), run(None))


@pytest.mark.parametrize("content", [b"", b"my diary", "model"], ids=["empty", "text", "weights"])
def test_other_file_is_not_overwritten(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "precious.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(network().state_dict(), path)
    before = path.read_bytes()
    with pytest.raises(RequestError, match=r"precious\.pt exists and is no training checkpoint"):
        fit(network(), blobs(), Tuning(), checkpoint=path)
    assert path.read_bytes() == before


def test_unwritable_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="a checkpoint must be writable"):
        fit(network(), blobs(), Tuning(), checkpoint=tmp_path / "file" / "c")


# --- what goes wrong


@pytest.mark.parametrize(("bad_epoch", "bad"), [(0, math.nan), (1, math.inf), (2, math.nan)])
def test_bad_loss_restores_the_last_good_epoch(tmp_path: Path, bad_epoch: int, bad: float) -> None:
    loader, tuning = blobs(), Tuning(epochs=3, learning_rate=0.01)
    states = []
    calls = 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return cross_entropy(outputs, targets) * (bad if calls == bad_epoch * len(loader) + 3 else 1.0)

    def after_step(model: nn.Module, done: float) -> None:
        grow_mask(model, done)
        if round(done * 3 * len(loader)) % len(loader) == 0:
            states.append(state(model))

    model = masked_network()
    states.append(state(model))
    with pytest.raises(TrainingError, match=rf"became (nan|inf) in epoch {bad_epoch + 1}/3, batch 3; .*learning rate"):
        fit(model, loader, tuning, loss=loss, after_step=after_step)
    assert len(states) == bad_epoch + 1
    assert same(state(model), states[-1])
    assert model.training


def test_bad_weights_after_the_last_step_are_found() -> None:
    model = nn.Linear(8, 3)
    before = state(model)

    def ruin(model: nn.Module, done: float) -> None:
        if done == 1:
            model.weight.data[0, 0] = math.nan

    with pytest.raises(TrainingError, match="weight is not after epoch 1"):
        fit(model, blobs(), Tuning(), after_step=ruin)
    assert same(state(model), before)


def test_divergence_is_found() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    before = state(model)
    with pytest.raises(TrainingError):
        fit(model, blobs(), Tuning(epochs=20, learning_rate=1e30, optimizer="sgd"))
    assert same(state(model), before)


def test_frozen_parameters_stay() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    before = state(model)
    fit(model, blobs(), Tuning(weight_decay=0.1))
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(model.state_dict()["0.bias"], before["0.bias"])


def test_no_epochs_leave_the_weights() -> None:
    model = network()
    before = state(model)
    fit(model, blobs(), Tuning(epochs=0))
    assert same(state(model), before)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(RequestError, match="needs a parameter that requires grad, but ReLU has none"):
        fit(nn.ReLU(), blobs(), Tuning())


@pytest.mark.parametrize("use", [lambda m: fit(m, [], Tuning()), lambda m: evaluate(m, []), lambda m: predict(m, [])])
def test_empty_loader_is_an_error(use: Callable[[nn.Module], object]) -> None:
    with pytest.raises(DataError, match="at least one batch"):
        use(network())


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_seed_out_of_range_is_an_error(seed: Any) -> None:
    with pytest.raises(RequestError, match=r"seed must be a whole number in \[0, 2\*\*32\), got"):
        fit(network(), blobs(), Tuning(), seed=seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, r"epochs must be a whole number >= 0, got -1"),
        ({"epochs": 1.5}, r"epochs must be a whole number"),
        ({"learning_rate": 0.0}, r"learning_rate must be finite and > 0, got 0.0"),
        ({"learning_rate": math.nan}, r"learning_rate must be"),
        ({"learning_rate": math.inf}, r"learning_rate must be"),
        ({"weight_decay": -0.1}, r"weight_decay must be finite and >= 0, got -0.1"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\), got 1.0"),
        ({"optimizer": "adm"}, r"optimizer must be one of sgd, adam, adamw, got 'adm'"),
        ({"schedule": "step"}, r"schedule must be one of constant, cosine, linear, got 'step'"),
        ({"precision": "16-mixed"}, r"precision must be one of auto, 32-true, bf16-mixed, got '16-mixed'"),
    ],
)
def test_tuning_out_of_range_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Tuning(**options)


# --- progress and evaluation


def test_progress_is_reported_per_batch() -> None:
    calls: list[tuple[str, int, int, str]] = []
    model, loader = network(), blobs()
    fit(model, loader, Tuning(epochs=2), progress=lambda *call: calls.append(call))
    assert [call[:3] for call in calls] == [("train", done, 8) for done in range(1, 9)]
    assert calls[0][3].startswith("epoch 1/2, loss ")
    assert calls[-1][3].startswith("epoch 2/2, loss ")
    calls.clear()
    evaluate(model, loader, progress=lambda *call: calls.append((*call, "")))
    assert [call[:3] for call in calls] == [("evaluate", done, 4) for done in range(1, 5)]


def test_accuracy_weighs_samples_not_batches() -> None:
    loader = TensorLoader(torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 1]), batch_size=3)
    assert evaluate(nn.Identity(), loader) == 0.75


def test_evaluation_is_in_eval_mode_without_gradients() -> None:
    model = network()
    inputs, targets = blobs(shuffle=False).inputs, blobs(shuffle=False).targets
    statistics = state(model)
    logits, found = predict(model, blobs(shuffle=False))
    assert torch.equal(found, targets)
    assert not logits.requires_grad
    assert same(state(model), statistics)
    assert torch.allclose(logits, model.eval()(inputs), atol=1e-5)


def test_bf16_mixed_trains_float32_weights() -> None:
    seen = []
    model = network()
    model[4].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    fit(model, blobs(), Tuning(precision="bf16-mixed"))
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_model_is_an_ordinary_module_afterwards() -> None:
    """Nothing of Fabric stays on it."""
    model = network()
    attributes = set(vars(model))
    fit(model, blobs(), Tuning())
    assert set(vars(model)) == attributes
    inputs = blobs(shuffle=False).inputs
    assert torch.equal(copy.deepcopy(model).eval()(inputs), model.eval()(inputs))


def test_mean_loss_counts_samples_alike_in_eval_mode() -> None:
    model = network().train()
    data = blobs(50, shuffle=False)  # batches of 16, 16, 16 and 2
    with torch.no_grad():
        wanted = cross_entropy(copy.deepcopy(model).eval()(data.inputs), data.targets).item()
    assert mean_loss(model, data) == pytest.approx(wanted, rel=1e-5)
    assert model.training
    with pytest.raises(DataError, match="no batch"):
        mean_loss(model, [])
