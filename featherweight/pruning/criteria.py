"""How important a weight or a neuron is: the lower the score, the sooner it goes.

To add a criterion, write a function and a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from featherweight.graph.groups import Group

__all__ = [
    "NEURON_CRITERIA",
    "WEIGHT_CRITERIA",
    "NeuronCriterion",
    "WeightCriterion",
    "neuron_magnitude",
    "neuron_random",
    "weight_magnitude",
    "weight_random",
]

WeightCriterion = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
NeuronCriterion = Callable[[Group, Mapping[str, torch.Tensor], torch.Generator], torch.Tensor]


def weight_magnitude(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """|w| for each weight (Han et al., NIPS 2015).

    Args:
        weight: any shape.
        generator: not used.

    Returns:
        Scores, the shape of `weight`, at least 0.

    Example:
        >>> weight_magnitude(torch.tensor([-2.0, 1.0]), torch.Generator()).tolist()
        [2.0, 1.0]
    """
    return weight.abs()


def weight_random(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A uniform random number for each weight: the control every criterion is held against.

    Args:
        weight: any shape; only its shape is read.
        generator: where the numbers come from.

    Returns:
        Scores in [0, 1), the shape of `weight`.

    Example:
        >>> weight_random(torch.zeros(2, 3), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def neuron_magnitude(group: Group, tensors: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """The root mean square of all weights of a channel, over every matrix or kernel it has a part in.

    Group L2 norm as in DepGraph (Fang et al., CVPR 2023, eq. 4), but as a mean for each tensor, so that a producer of few
    weights counts as much as a consumer of many.

    Args:
        group: the coupled channels.
        tensors: the network's tensors by name.
        generator: not used.

    Returns:
        Scores, shape (group.size,), at least 0.

    Example:
        >>> group = Group("w", {("w", 0): torch.tensor([[0], [1]])})
        >>> neuron_magnitude(group, {"w": torch.tensor([[3.0, 3.0], [1.0, 1.0]])}, torch.Generator()).tolist()
        [3.0, 1.0]
    """
    squares = []
    for (name, axis), indices in group.members.items():
        tensor = tensors[name]
        if tensor.dim() >= 2:
            lines = tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1).square().mean(dim=1)
            squares.append(lines[indices].mean(dim=1))
    if not squares:
        return torch.ones(group.size)
    return torch.stack(squares).mean(dim=0).sqrt()


def neuron_random(group: Group, tensors: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """A uniform random number for each channel: the control every criterion is held against.

    Args:
        group: the coupled channels.
        tensors: not used.
        generator: where the numbers come from.

    Returns:
        Scores in [0, 1), shape (group.size,).

    Example:
        >>> group = Group("w", {("w", 0): torch.tensor([[0], [1]])})
        >>> neuron_random(group, {}, torch.Generator().manual_seed(0)).shape
        torch.Size([2])
    """
    return torch.rand(group.size, generator=generator)


WEIGHT_CRITERIA: dict[str, WeightCriterion] = {"magnitude": weight_magnitude, "random": weight_random}
NEURON_CRITERIA: dict[str, NeuronCriterion] = {"magnitude": neuron_magnitude, "random": neuron_random}
