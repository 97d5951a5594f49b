"""How important a weight is: the lower the score, the sooner it goes.

To add a criterion, write a function and a row. Movement and path integrals are accumulated in training (`trajectory`), and
given in place of a criterion's name, as are a user's own scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from featherweight.errors import RequestError, look_up
from featherweight.pruning.trajectory import TRAJECTORIES
from featherweight.training.inputs import input_moments
from featherweight.training.statistics import (
    Evidence,
    hessian_diagonals,
    mean_gradients,
    output_sensitivities,
    squared_gradients,
)

__all__ = [
    "WEIGHT_CRITERIA",
    "WeightCriterion",
    "score_weights",
    "weight_consolidation",
    "weight_damage",
    "weight_fisher",
    "weight_input",
    "weight_magnitude",
    "weight_random",
    "weight_sensitivity",
    "weight_taylor",
]

Tensors = Mapping[str, torch.Tensor]
WeightCriterion = Callable[[Tensors, Evidence], dict[str, torch.Tensor]]
"""(weights by name, evidence) -> for each name scores of the weight's shape."""


def weight_magnitude(weights: Tensors, evidence: Evidence) -> dict[str, torch.Tensor]:
    """|w| (Han et al., NIPS 2015).

    Args:
        weights: tensors of any shape, by name.
        evidence: not used.

    Returns:
        Scores of the same names and shapes, at least 0.

    Example:
        >>> weight_magnitude({"w": torch.tensor([-2.0, 1.0])}, Evidence(torch.nn.Identity()))["w"].tolist()
        [2.0, 1.0]
    """
    return {name: weight.abs() for name, weight in weights.items()}


def weight_random(weights: Tensors, evidence: Evidence) -> dict[str, torch.Tensor]:
    """A uniform random number: the control every criterion is held against.

    Args:
        weights: tensors of any shape, by name; only their shapes are read.
        evidence: its generator is drawn from.

    Returns:
        Scores in [0, 1) of the same names and shapes.

    Example:
        >>> weight_random({"w": torch.zeros(2, 3)}, Evidence(torch.nn.Identity()))["w"].shape
        torch.Size([2, 3])
    """
    return {name: torch.rand(w.shape, generator=evidence.generator).to(w.device) for name, w in weights.items()}


def weight_taylor(weights: Tensors, evidence: Evidence) -> dict[str, torch.Tensor]:
    """|w · g|, g the gradient of the mean loss: how much the loss changes, to first order, when the weight goes.

    Molchanov et al. (CVPR 2019) on single weights, in absolute value as in their earlier work (ICLR 2017), and with one
    gradient over all data where they average over batches, so that the size of the batches does not matter.

    Args:
        weights: tensors of the network, by name.
        evidence: with data and loss.

    Returns:
        Scores of the same names and shapes, at least 0.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = layer.weight.data.fill_(-0.5)
        >>> evidence = Evidence(layer, [(torch.tensor([[4.0]]), torch.zeros(1))], loss=lambda outputs, _: outputs.mean())
        >>> weight_taylor({"weight": layer.weight.detach()}, evidence)["weight"].item()
        2.0
    """
    gradients = mean_gradients(evidence, weights)
    return {name: (weight * gradients[name]).abs() for name, weight in weights.items()}


def weight_fisher(weights: Tensors, evidence: Evidence) -> dict[str, torch.Tensor]:
    """w² · F / 2, F the mean over samples of the squared gradient: Fisher pruning (Theis et al., 2018), weight by weight.

    The empirical Fisher information stands for the Hessian in optimal brain damage. For F alone see `weight_consolidation`.

    Args:
        weights: tensors of the network, by name.
        evidence: with data and loss.

    Returns:
        Scores of the same names and shapes, at least 0.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = layer.weight.data.fill_(-0.5)
        >>> evidence = Evidence(layer, [(torch.tensor([[4.0]]), torch.zeros(1))], loss=lambda outputs, _: outputs.mean())
        >>> weight_fisher({"weight": layer.weight.detach()}, evidence)["weight"].item()
        2.0
    """
    return _damage(weights, squared_gradients(evidence, weights))


def weight_damage(weights: Tensors, evidence: Evidence) -> dict[str, torch.Tensor]:
    """h · w² / 2, h the diagonal of the Hessian: optimal brain damage (LeCun et al., NIPS 1989, eq. 5).

    Like theirs the diagonal is that of the Gauss-Newton matrix, see `hessian_diagonals`.

    Args:
        weights: tensors of the network, by name.
        evidence: with data and loss.

    Returns:
        Scores of the same names and shapes, at least 0.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = layer.weight.data.fill_(-0.5)
        >>> evidence = Evidence(layer, [(torch.tensor([[4.0]]), torch.zeros(1, 1))], loss=torch.nn.functional.mse_loss)
        >>> weight_damage({"weight": layer.weight.detach()}, evidence)["weight"].item()
        4.0
    """
    return _damage(weights, hessian_diagonals(evidence, weights))


def weight_consolidation(weights: Tensors, evidence: Evidence) -> dict[str, torch.Tensor]:
    """F, the mean over samples of the squared gradient: how little this weight may change, in elastic weight consolidation.

    Kirkpatrick et al. (PNAS 2017): the penalty on a change δ is F δ² / 2. A score for keeping weights as they are; what their
    removal costs is `weight_fisher`.

    Args:
        weights: tensors of the network, by name.
        evidence: with data and loss.

    Returns:
        Scores of the same names and shapes, at least 0.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> evidence = Evidence(layer, [(torch.tensor([[4.0]]), torch.zeros(1))], loss=lambda outputs, _: outputs.mean())
        >>> weight_consolidation({"weight": layer.weight.detach()}, evidence)["weight"].item()
        16.0
    """
    return squared_gradients(evidence, weights)


def weight_sensitivity(weights: Tensors, evidence: Evidence) -> dict[str, torch.Tensor]:
    """How strongly the weight moves the outputs: memory aware synapses (Aljundi et al., ECCV 2018), see `output_sensitivities`.

    Args:
        weights: tensors of the network, by name.
        evidence: with data, of which only the inputs count.

    Returns:
        Scores of the same names and shapes, at least 0.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = layer.weight.data.fill_(-0.5)
        >>> evidence = Evidence(layer, [(torch.tensor([[4.0]]), torch.zeros(1))])
        >>> weight_sensitivity({"weight": layer.weight.detach()}, evidence)["weight"].item()
        16.0
    """
    return output_sensitivities(evidence, weights)


def weight_input(weights: Tensors, evidence: Evidence) -> dict[str, torch.Tensor]:
    """|w| · ‖x‖₂, x the input that the weight multiplies, over all samples: Wanda (Sun et al., ICLR 2024, eq. 1).

    They compare the weights of one output with each other only: that is `allocation="row"`. Under the others layers compare by
    how much their outputs change, whatever that means further on.

    Args:
        weights: of linear and convolution layers, by name.
        evidence: with data, of which only the inputs count.

    Returns:
        Scores of the same names and shapes, at least 0.

    Raises:
        RequestError, DataError: as `input_moments` says.

    Example:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, -0.5]]))
        >>> evidence = Evidence(layer, [(torch.tensor([[1.0, 4.0]]), torch.zeros(1))])
        >>> weight_input({"weight": layer.weight.detach()}, evidence)["weight"].tolist()
        [[1.0, 2.0]]
    """
    moments = input_moments(evidence, weights)
    return {name: weight.abs() * moments[name].sqrt() for name, weight in weights.items()}


def _damage(weights: Tensors, curvatures: Tensors) -> dict[str, torch.Tensor]:
    return {name: weight.square() * curvatures[name] / 2 for name, weight in weights.items()}


WEIGHT_CRITERIA: dict[str, WeightCriterion] = {
    "magnitude": weight_magnitude,
    "random": weight_random,
    "taylor": weight_taylor,
    "fisher": weight_fisher,
    "obd": weight_damage,
    "wanda": weight_input,
    "ewc": weight_consolidation,
    "mas": weight_sensitivity,
}


def score_weights(
    weights: Tensors, evidence: Evidence, criterion: str | WeightCriterion | Tensors = "magnitude"
) -> dict[str, torch.Tensor]:
    """The scores of weights by a criterion of any kind, checked.

    Args:
        weights: tensors of the network, by name.
        evidence: what the criterion may look at.
        criterion: a name in `WEIGHT_CRITERIA`; or a function like those in it; or scores by name, of the weights' shapes.

    Returns:
        Scores of the same names and shapes.

    Raises:
        RequestError: an unknown name, or scores that are missing, of the wrong shape, NaN or infinite.
        DataError: as the criterion says.

    Example:
        >>> weights = {"w": torch.tensor([-2.0, 1.0])}
        >>> score_weights(weights, Evidence(torch.nn.Identity()), lambda weights, evidence: weights)["w"].tolist()
        [-2.0, 1.0]
    """
    if isinstance(criterion, Mapping):
        what, found = "the scores given", {name: score for name, score in criterion.items() if name in weights}
    elif callable(criterion):
        what, found = "the criterion given", criterion(weights, evidence)
    elif criterion in TRAJECTORIES:
        kind = TRAJECTORIES[criterion].__name__
        rule = f"the criterion {criterion!r} is accumulated in training, so a name is not enough"
        raise RequestError(f"{rule}: give fit a {kind}(model) as after_step, and then this {kind} as criterion")
    else:
        what = f"the criterion {criterion!r}"
        found = look_up(WEIGHT_CRITERIA, criterion, "criterion")(weights, replace(evidence, purpose=what))
    for name, weight in weights.items():
        if name not in found:
            raise RequestError(f"{what} must score every weight, but there is nothing for {name}; exclude it")
        if found[name].shape != weight.shape:
            raise RequestError(
                f"scores must have their weight's shape {tuple(weight.shape)}, got {tuple(found[name].shape)} for {name}"
            )
        if not bool(found[name].isfinite().all()):
            raise RequestError(f"scores must be finite, but {what} gave NaN or infinity for {name}")
    return {name: found[name].to(weight.device) for name, weight in weights.items()}
