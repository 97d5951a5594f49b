"""The one training loop, on Lightning Fabric, and the evaluation that goes with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer

from featherweight.errors import DataError, RequestError, TrainingError, check
from featherweight.training.checkpoint import fingerprint, read_checkpoint, write_checkpoint
from featherweight.training.loaders import Batch, Loader
from featherweight.training.mode import device_of, in_mode
from featherweight.training.progress import Progress, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AfterStep",
    "Loss",
    "Tuning",
    "evaluate",
    "fit",
    "learning_rate_at",
    "mean_loss",
    "predict",
]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(outputs, targets) -> a scalar."""

AfterStep = Callable[[nn.Module, float], None]
"""Called after each optimizer step with the model and the fraction of all steps that is done, in (0, 1]."""

_Parameters = Iterable[nn.Parameter]

# Fused: the whole update in one kernel, which takes a quarter of the time on a CPU, where a small network's batches are short.
OPTIMIZERS: Mapping[str, Callable[[_Parameters, float, float], Optimizer]] = {
    "sgd": lambda parameters, rate, decay: SGD(
        parameters, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True, fused=True
    ),
    "adam": lambda parameters, rate, decay: Adam(parameters, lr=rate, weight_decay=decay, fused=True),
    "adamw": lambda parameters, rate, decay: AdamW(parameters, lr=rate, weight_decay=decay, fused=True),
}
"""Optimizers by name: (parameters, learning rate, weight decay) -> optimizer. "sgd" has Nesterov momentum 0.9."""

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
}
"""Schedules by name: the fraction of training done, in [0, 1) -> the factor on the learning rate, in (0, 1]."""

_PRECISIONS = ("auto", "32-true", "bf16-mixed")


@dataclass(frozen=True)
class Tuning:
    """How to train: everything `fit` needs to know besides the network, the data and the loss.

    Args:
        epochs: passes over the training data, at least 0; 0 leaves the weights as they are.
        min_steps: at least 0; on small data there are as many more epochs as it takes to make so many steps.
        learning_rate: the highest rate, above 0.
        optimizer: a name in `OPTIMIZERS`.
        weight_decay: at least 0; on every trained parameter, biases and norms included.
        schedule: a name in `SCHEDULES`: how the rate falls after the warm-up.
        warmup: fraction of all steps, in [0, 1), during which the rate rises linearly.
        precision: "32-true", "bf16-mixed", or "auto": bf16-mixed on a CUDA device that supports it, else 32-true.

    Raises:
        RequestError: a value is out of range, or a name unknown.

    Example:
        >>> Tuning(epochs=3, optimizer="sgd", learning_rate=0.1).schedule
        'cosine'
    """

    epochs: int = 1
    min_steps: int = 0
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.0
    precision: str = "auto"

    def __post_init__(self) -> None:
        check("epochs", self.epochs, "a whole number >= 0", isinstance(self.epochs, int) and self.epochs >= 0)
        check("min_steps", self.min_steps, "a whole number >= 0", isinstance(self.min_steps, int) and self.min_steps >= 0)
        check("learning_rate", self.learning_rate, "finite and > 0", 0 < self.learning_rate < math.inf)
        check("weight_decay", self.weight_decay, "finite and >= 0", 0 <= self.weight_decay < math.inf)
        check("warmup", self.warmup, "in [0, 1)", 0 <= self.warmup < 1)
        for name, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, _PRECISIONS),
        ):
            check(name, value, f"one of {', '.join(known)}", value in known)

    def epochs_on(self, loader: Loader) -> int:
        """How many passes over these batches are made."""
        return max(self.epochs, -(-self.min_steps // len(loader))) if self.epochs else 0


def learning_rate_at(tuning: Tuning, step: int, steps: int) -> float:
    """The learning rate of one step.

    Args:
        tuning: gives the highest rate, the warm-up and the schedule.
        step: which one, in [0, steps).
        steps: how many there are in all epochs together.

    Returns:
        The rate, in (0, tuning.learning_rate].

    Example:
        >>> tuning = Tuning(learning_rate=1.0, warmup=0.5, schedule="linear")
        >>> [round(learning_rate_at(tuning, step, 4), 2) for step in range(4)]
        [0.33, 0.67, 1.0, 0.5]
    """
    rising = round(tuning.warmup * steps)
    if step < rising:
        return tuning.learning_rate * (step + 1) / (rising + 1)
    return tuning.learning_rate * SCHEDULES[tuning.schedule]((step - rising) / (steps - rising))


def fit(
    model: nn.Module,
    loader: Loader,
    tuning: Tuning,
    *,
    loss: Loss = cross_entropy,
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    after_step: AfterStep | None = None,
) -> None:
    """Trains a network IN PLACE, on the device its parameters are on. Callers that must keep theirs train a copy.

    Each epoch e starts by seeding torch with (seed, e), so the order of the data, dropout and augmentation do not depend on
    what ran before; torch's generators are put back afterwards. The network's train/eval modes are put back, too.

    With `checkpoint`, the state is written there after every epoch. If the file is there already and comes from the same start
    weights, tuning, seed and number of batches, training goes on after its last epoch and ends with the very weights of an
    unbroken run; if these differ, training starts anew and overwrites it. Data, loss and `after_step` are not compared: delete
    the file when they change. Interrupted with Ctrl-C, the file holds the last finished epoch.

    Args:
        model: only parameters that require grad are trained; buffers (masks, batch norm statistics) follow along.
        loader: batches of (inputs, targets).
        tuning: epochs, optimizer, schedule, precision.
        loss: (outputs, targets) -> scalar.
        seed: in [0, 2**32).
        progress: called after every batch.
        checkpoint: where to keep the state of the run.
        after_step: called after every optimizer step with (model, fraction of all steps done); may change parameters and
            buffers in place, as a function of these two alone.

    Raises:
        TrainingError: the loss or a weight became NaN or infinite; the weights are those after the last good epoch again.
        RequestError: nothing in the network is trainable, the seed is out of range, or the checkpoint is some other file.
        DataError: the loader is empty.

    Example:
        >>> model = nn.Linear(1, 2)
        >>> before = model.weight.clone()
        >>> fit(model, [(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64))], Tuning(epochs=2))
        >>> bool((model.weight == before).any())
        False
    """
    check("seed", seed, "a whole number in [0, 2**32)", isinstance(seed, int) and 0 <= seed < 2**32)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise RequestError(f"training needs a parameter that requires grad, but {type(model).__name__} has none")
    _check_not_empty(loader)
    optimizer = OPTIMIZERS[tuning.optimizer](trained, tuning.learning_rate, tuning.weight_decay)
    run_id = fingerprint(model, {"tuning": asdict(tuning), "seed": seed, "batches": len(loader)}) if checkpoint else ""
    first = _resume(checkpoint, run_id, model, optimizer) if checkpoint else 0
    device = trained[0].device
    fabric = _fabric(device, tuning.precision)
    forward, stepper = fabric.setup(model, optimizer)
    run = _Run(fabric, model, forward, stepper, loader, tuning, loss, progress, after_step)
    good = _snapshot(model)
    with in_mode(model, training=True), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for epoch in range(first, tuning.epochs_on(loader)):
            torch.manual_seed(seed * 1_000_003 + epoch)
            try:
                run.train_epoch(epoch)
            except TrainingError as error:
                model.load_state_dict(good)
                raise TrainingError(str(error), good_epochs=epoch) from None
            good = _snapshot(model)
            if checkpoint:
                write_checkpoint(checkpoint, epoch=epoch + 1, model=model, optimizer=optimizer, fingerprint=run_id)


@dataclass(frozen=True)
class _Run:
    """What the epochs of one `fit` share."""

    fabric: Fabric
    model: nn.Module
    forward: nn.Module
    optimizer: Optimizer
    loader: Loader
    tuning: Tuning
    loss: Loss
    progress: Progress
    after_step: AfterStep | None

    def train_epoch(self, epoch: int) -> None:
        """One pass over the loader."""
        batches = len(self.loader)
        epochs = self.tuning.epochs_on(self.loader)
        steps = batches * epochs
        for batch, (inputs, targets) in enumerate(self.loader):
            step = epoch * batches + batch
            where = f"epoch {epoch + 1}/{epochs}"
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at(self.tuning, step, steps)
            loss = self._step(*self.fabric.to_device((inputs, targets)))
            if not math.isfinite(loss):
                raise TrainingError(f"the loss must stay finite, but became {loss} in {where}, batch {batch + 1}; {_REMEDY}")
            if self.after_step is not None:
                self.after_step(self.model, (step + 1) / steps)
            self.progress("train", step + 1, steps, f"{where}, loss {loss:.4f}")
        broken = [name for name, value in self.model.state_dict().items() if not _is_finite(value)]
        if broken:
            raise TrainingError(f"weights must stay finite, but {broken[0]} is not after epoch {epoch + 1}; {_REMEDY}")

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        """One update; none if the loss is not finite."""
        self.optimizer.zero_grad()
        loss = self.loss(self.forward(inputs), targets)
        value = loss.item()
        if math.isfinite(value):
            self.fabric.backward(loss)
            self.optimizer.step()
        return value


_REMEDY = "the weights of the last good epoch are back; try a lower learning rate"


def _fabric(device: torch.device, precision: str) -> Fabric:
    from lightning_fabric import Fabric

    if precision == "auto":
        precision = "bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"
    devices = [device.index or 0] if device.type == "cuda" else 1
    return Fabric(accelerator=device.type, devices=devices, precision=precision)  # type: ignore[arg-type]


def _resume(path: Path, run_id: str, model: nn.Module, optimizer: Optimizer) -> int:
    """Takes over the state of an earlier, interrupted run of the same kind; returns how many epochs it had finished."""
    state = read_checkpoint(path)
    if state is None or state["fingerprint"] != run_id:
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    epochs: int = state["epoch"]
    return epochs


def _snapshot(model: nn.Module) -> dict[str, Any]:
    return {name: v.detach().clone() if isinstance(v, torch.Tensor) else v for name, v in model.state_dict().items()}


def _is_finite(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or bool(torch.isfinite(value).all())


def evaluate(model: nn.Module, loader: Loader, *, progress: Progress = silent) -> float:
    """The accuracy of a classifier: the fraction of samples whose largest output is the target's.

    Computed in eval mode, without gradients, on the device of the network's parameters; the modes are put back afterwards.

    Args:
        model: gives (B, classes) outputs.
        loader: batches of (inputs, targets), targets (B,).
        progress: called after every batch.

    Returns:
        The accuracy in [0, 1].

    Raises:
        DataError: the loader is empty.

    Example:
        >>> evaluate(nn.Identity(), [(torch.eye(4), torch.tensor([0, 1, 2, 0]))])
        0.75
    """
    right = total = 0
    for done, (logits, targets) in enumerate(_outputs(model, loader), start=1):
        right += int((logits.argmax(dim=1) == targets).sum())
        total += len(targets)
        progress("evaluate", done, len(loader))
    return right / total


def predict(model: nn.Module, loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of a network for all of a loader's samples, in eval mode, with the targets beside them.

    Args:
        model: gives one output tensor per batch; its modes are put back afterwards.
        loader: batches of (inputs, targets).

    Returns:
        The outputs (N, …) and the targets (N,), on the CPU.

    Raises:
        DataError: the loader is empty.

    Example:
        >>> logits, targets = predict(nn.Identity(), [(torch.eye(2), torch.tensor([0, 1]))])
        >>> logits.shape, targets.tolist()
        (torch.Size([2, 2]), [0, 1])
    """
    pairs = [(logits.cpu(), targets.cpu()) for logits, targets in _outputs(model, loader)]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([targets for _, targets in pairs])


def mean_loss(model: nn.Module, data: Iterable[Batch], *, loss: Loss = cross_entropy) -> float:
    """The loss of a network over all samples, in eval mode, without gradients; the modes are put back afterwards.

    Args:
        model: any.
        data: batches of (inputs, targets).
        loss: (outputs, targets) -> scalar, the mean over the batch.

    Returns:
        The mean over all samples, each batch weighted by its size.

    Raises:
        DataError: there is no batch.

    Example:
        >>> data = [(torch.zeros(3), torch.ones(3)), (torch.zeros(1), torch.zeros(1))]
        >>> mean_loss(nn.Identity(), data, loss=nn.functional.mse_loss)
        0.75
    """
    device, total, samples = device_of(model), 0.0, 0
    with in_mode(model, training=False), torch.no_grad():
        for inputs, targets in data:
            total += float(loss(model(inputs.to(device)), targets.to(device))) * len(inputs)
            samples += len(inputs)
    if samples == 0:
        raise DataError("a mean loss needs data, got no batch")
    return total / samples


def _outputs(model: nn.Module, loader: Loader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    _check_not_empty(loader)
    device = device_of(model)
    for inputs, targets in loader:
        with in_mode(model, training=False), torch.no_grad():
            logits = model(inputs.to(device))
        yield logits, targets.to(device)


def _check_not_empty(loader: Loader) -> None:
    if len(loader) == 0:
        raise DataError("a loader must hold at least one batch, got none")
