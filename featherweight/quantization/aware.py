"""Quantization-aware training: weights and steps learn together, in the one training loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from featherweight.errors import RequestError
from featherweight.graph.capture import tensors_of
from featherweight.graph.constraint import constrained, duplicate
from featherweight.graph.program import ProgramModule, owner_of, tensor_called
from featherweight.graph.shapes import infer_shapes
from featherweight.quantization.activations import find_quantizers
from featherweight.quantization.grid import Grid
from featherweight.training.loaders import Loader
from featherweight.training.loop import AfterStep, Loss, Tuning, fit
from featherweight.training.progress import Progress, silent

__all__ = ["learnable_steps", "tune_quantized"]


def tune_quantized(
    model: nn.Module,
    loader: Loader,
    tuning: Tuning,
    *,
    loss: Loss = cross_entropy,
    seed: int = 0,
    progress: Progress = silent,
    after_step: AfterStep | None = None,
) -> nn.Module:
    """Trains a quantized network: forward it computes with rounded numbers, backward the rounding lets gradients through.

    Learned step size quantization (LSQ: Esser, McKinstry, Bablani, Appuswamy and Modha, ICLR 2020): grids hold their steps as
    parameters, so `fit` would do, but for what an update of a step should be. Here each step is trained as start · exp(θ), as
    in TQT (Jain, Gural, Wu and Dick, MLSys 2020): it stays positive, one learning rate suits large steps and small ones, and
    weight decay pulls it to where it started. The gradient of θ is scaled so that a step of SGD is LSQ's, with their factor
    1/√(n · high) for a step that n numbers share. Deviation: steps start where they are, at the range that was chosen, not at
    2 · mean|w|/√high; `benchmarks/rounding.py` compares the two.

    Args:
        model: with `Grid`s on its weights, with quantizers of its activations (`place_quantizers`), or both; it is not changed.
            Masks stay what they are.
        loader: batches of (inputs, targets).
        tuning: epochs, optimizer, schedule, precision.
        loss: (outputs, targets) -> scalar.
        seed: in [0, 2**32).
        progress: called after every batch.
        after_step: as in `fit`.

    Returns:
        A trained copy, quantized as the model is; its steps are plain parameters again.

    Raises:
        RequestError: nothing in the network is quantized, or as `fit` says.
        TrainingError, DataError: as `fit` says.

    Example:
        >>> from featherweight.graph.constraint import constrain, fold
        >>> layer, data = nn.Linear(1, 2), [(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64))]
        >>> constrain(layer, "weight", Grid(torch.tensor(0.1), -8, 7))
        >>> tuned = tune_quantized(layer, data, Tuning(epochs=5))
        >>> step = tuned.parametrizations.weight[0].step
        >>> bool(step != 0.1), torch.equal(fold(tuned).weight, torch.round(fold(tuned).weight / step) * step)
        (True, True)
    """
    tuned = duplicate(model)
    if not list(_steps(tuned)):
        what = f"{type(model).__name__} has neither grids nor quantizers"
        raise RequestError(f"quantization-aware training needs a quantized network, but {what}; call quantize_uniform first")
    with learnable_steps(tuned):
        fit(tuned, loader, tuning, loss=loss, seed=seed, progress=progress, after_step=after_step)
    return tuned


@contextmanager
def learnable_steps(model: nn.Module) -> Iterator[None]:
    """For a while a network's steps are trained as `tune_quantized` says, whatever trains it, IN PLACE.

    Args:
        model: with grids or quantizers; any other is left as it is.

    Yields:
        Nothing. Meanwhile each step carries a parametrization; afterwards it is a plain parameter again.

    Example:
        >>> from featherweight.graph.constraint import constrain
        >>> layer = nn.Linear(1, 2)
        >>> constrain(layer, "weight", Grid(torch.tensor(0.1), -8, 7))
        >>> with learnable_steps(layer):
        ...     [name for name, _ in layer.named_parameters() if "step" in name]
        ['parametrizations.weight.0.parametrizations.step.original']
    """
    steps = list(_steps(model))
    for owner, leaf, factor in steps:
        parametrize.register_parametrization(owner, leaf, _Relative(getattr(owner, leaf).detach(), factor))
    try:
        yield
    finally:
        for owner, leaf, _ in steps:
            parametrize.remove_parametrizations(owner, leaf, leave_parametrized=True)


class _Relative(nn.Module):
    """start · exp(θ); the gradient of θ is scaled so that by descent the step moves by `factor` times its own gradient."""

    start: torch.Tensor
    factor: torch.Tensor

    def __init__(self, start: torch.Tensor, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start.clone())
        self.register_buffer("factor", factor.to(start))

    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        step = self.start * torch.exp(theta)
        value = step.detach()
        return value + (step - value) * self.factor / value.square()

    def right_inverse(self, step: torch.Tensor) -> torch.Tensor:
        return torch.log(step / self.start)


def _steps(model: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """The owner and the name of each step that is trained, and LSQ's factor on its gradient."""
    for name, chain in constrained(model).items():
        for constraint in chain:
            if isinstance(constraint, Grid) and constraint.step.requires_grad:
                share = tensor_called(model, name).numel() / constraint.step.numel()
                yield constraint, "step", (share * constraint.high.clamp(min=1)).rsqrt()
    for module in model.modules():
        if isinstance(module, ProgramModule):
            yield from _activation_steps(module)


def _activation_steps(module: ProgramModule) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    program = module.program
    shapes = infer_shapes(program, tensors_of(module, program), batch=1)
    shared: dict[str, float] = {}
    for quantizer in find_quantizers(program):
        features = shapes[quantizer.source.index].numel()
        shared[quantizer.step] = shared.get(quantizer.step, 0.0) + features * max(quantizer.high, 1)
    for name, count in shared.items():
        owner, leaf = owner_of(module, name)
        if getattr(owner, leaf).requires_grad:
            yield owner, leaf, torch.tensor(1 / math.sqrt(count))
