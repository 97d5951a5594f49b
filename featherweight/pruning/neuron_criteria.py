"""How important a neuron is: the lower the score, the sooner it goes.

A neuron is a channel of a coupled group: slices of several tensors that can only go together. Each criterion says how it makes
one number of them. To add a criterion, write a function and a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from featherweight.errors import RequestError
from featherweight.graph.cutting import Anatomy
from featherweight.graph.groups import Axis, Group
from featherweight.graph.ops import row_of
from featherweight.pruning.activations import channel_activity
from featherweight.pruning.channels import (
    batch_norm_scales,
    matrices_of,
    mean_squared_changes,
    parameters_of,
    slice_means,
    slice_sums,
)
from featherweight.training.statistics import Evidence, batches_of, mean_gradients, sample_gradients

__all__ = [
    "NEURON_CRITERIA",
    "NeuronCriterion",
    "neuron_activation",
    "neuron_apoz",
    "neuron_batch_norm_scale",
    "neuron_filter_norm",
    "neuron_fisher",
    "neuron_geometric_median",
    "neuron_magnitude",
    "neuron_random",
    "neuron_taylor",
    "neuron_weight_scores",
]

Scores = Sequence[torch.Tensor | None]
"""For each group a tensor (group.size,); None for a group of which a criterion knows nothing: it stays whole."""

NeuronCriterion = Callable[[Sequence[Group], Anatomy, Evidence], Scores]
"""(groups, their network, data and loss) -> scores."""


def neuron_magnitude(groups: Sequence[Group], network: Anatomy, evidence: Evidence, *, power: int = 2) -> Scores:
    """The mean of |w|^power, to the power of 1 / power, over every matrix or kernel in which a channel has a part.

    Group norm as in DepGraph (Fang et al., CVPR 2023, eq. 4), but as a mean for each tensor, and of these the mean, so that a
    producer of few weights counts as much as a consumer of many. Biases and norms do not count; in a group that has no matrix
    all its vectors do.

    Args:
        groups: of coupled channels.
        network: they belong to.
        evidence: not used.
        power: 2 for the root mean square, 1 for the mean absolute weight.

    Returns:
        For each group scores (group.size,), at least 0.

    Example:
        >>> from featherweight.graph.cutting import study
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))
        >>> net[0].weight.data, net[1].weight.data = torch.tensor([[7.0], [0.0]]), torch.tensor([[1.0, 1.0]])
        >>> network = study(net, torch.zeros(1, 1))
        >>> neuron_magnitude(network.coupling.groups, network, Evidence(net))[0].square()
        tensor([25.0000,  0.5000])
    """
    tensors = network.tensors
    measure = torch.square if power == 2 else lambda w: w.abs().pow(power)
    return [slice_means(matrices_of(group, tensors), tensors, measure).pow(1 / power) for group in groups]


def neuron_filter_norm(groups: Sequence[Group], network: Anatomy, evidence: Evidence, *, power: int) -> Scores:
    """The norm of the weights that produce a channel: its filters alone, not what reads it (Li et al., ICLR 2017, section 3.1).

    Where several layers produce one channel (a residual sum), the norm is over the filters of all. A group that no convolution
    or linear layer produces has the norm over all its matrices.

    Args:
        groups: of coupled channels.
        network: they belong to.
        evidence: not used.
        power: 1 for Σ|w|, as in the paper; 2 for √Σw².

    Returns:
        For each group scores (group.size,), at least 0.

    Example:
        >>> from featherweight.graph.cutting import study
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> net[0].weight.data = torch.tensor([[3.0, -4.0], [1.0, 0.0]])
        >>> network = study(net, torch.zeros(1, 2))
        >>> neuron_filter_norm(network.coupling.groups, network, Evidence(net), power=1)[0].tolist()
        [7.0, 1.0]
    """
    tensors, filters = network.tensors, _filters(network)
    scores = []
    for group in groups:
        matrices = matrices_of(group, tensors)
        own = {key: indices for key, indices in matrices.items() if key in filters} or matrices
        sums = [slice_sums(tensors[name].abs().pow(power)[None], axis, i)[0] for (name, axis), i in own.items()]
        scores.append(torch.stack(sums).sum(dim=0).pow(1 / power))
    return scores


def _filters(network: Anatomy) -> set[Axis]:
    """The tensors that a contraction multiplies with, each with the axis of its outputs."""
    program, found = network.program, set()
    for node in program.nodes:
        name = program.tensor_name(node.args[1]) if len(node.args) > 1 else None
        if name is not None and row_of(node.op).macs is not None:
            found.add((name, 0 if node.op.startswith(("linear", "conv1d", "conv2d", "conv3d")) else 1))
    return found


def neuron_batch_norm_scale(groups: Sequence[Group], network: Anatomy, evidence: Evidence) -> Scores:
    """|γ|, the scale of a channel's batch norm (network slimming, Liu et al., ICCV 2017, section 3).

    A channel with several batch norms (a residual sum) has their mean. Groups without one stay whole, as in the paper.

    Args:
        groups: of coupled channels.
        network: they belong to.
        evidence: not used.

    Returns:
        For each group scores (group.size,), at least 0; None without a batch norm.

    Example:
        >>> from torch import nn
        >>> from featherweight.graph.cutting import study
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> net[1].weight.data = torch.tensor([-2.0, 0.5])
        >>> network = study(net, torch.zeros(2, 3))
        >>> neuron_batch_norm_scale(network.coupling.groups, network, Evidence(net))[0].tolist()
        [2.0, 0.5]
    """
    scales = {*batch_norm_scales(network)}
    own = [{key: indices for key, indices in group.members.items() if key[0] in scales} for group in groups]
    return [slice_means(members, network.tensors, torch.abs) if members else None for members in own]


def neuron_geometric_median(groups: Sequence[Group], network: Anatomy, evidence: Evidence) -> Scores:
    """The mean distance of a channel's weights to those of the group's other channels (FPGM, He et al., CVPR 2019, eq. 6).

    A channel near the geometric median can be replaced by the others, whatever its norm. The paper looks at one layer's
    filters; here a channel is the vector of all its slices, with each tensor's part divided by the root of its length.

    Args:
        groups: of coupled channels.
        network: they belong to.
        evidence: not used.

    Returns:
        For each group scores (group.size,), at least 0.

    Example:
        >>> from featherweight.graph.cutting import study
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Linear(3, 1))
        >>> net[0].weight.data, net[1].weight.data = torch.tensor([[0.0], [4.0], [10.0]]), torch.ones(1, 3)
        >>> network = study(net, torch.zeros(1, 1))
        >>> [round(s * 2**0.5) for s in neuron_geometric_median(network.coupling.groups, network, Evidence(net))[0].tolist()]
        [7, 5, 8]
    """
    scores = []
    for group in groups:
        squares = []
        for (name, axis), indices in matrices_of(group, network.tensors).items():
            tensor = network.tensors[name].movedim(axis, 0)
            parts = tensor[indices.to(tensor.device)].reshape(group.size, -1).float()
            squares.append(torch.cdist(parts, parts).square() / parts.shape[1])
        distances = torch.stack(squares).mean(dim=0).sqrt()
        scores.append(distances.sum(dim=1) / max(group.size - 1, 1))
    return scores


def neuron_taylor(groups: Sequence[Group], network: Anatomy, evidence: Evidence) -> Scores:
    """(Σ g·w)² over all parameters of a channel, averaged over batches: the loss's change without it, to first order, squared.

    Molchanov et al. (CVPR 2019), eq. 8, with g the gradient of a batch's mean loss, as there; so the scores depend on how the
    data are cut into batches. The sum goes over the whole coupled group, biases and norms included: each tensor's slice
    contributes the change that removing the channel there would make.

    Args:
        groups: of coupled channels.
        network: they belong to.
        evidence: with data and loss.

    Returns:
        For each group scores (group.size,), at least 0.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> from featherweight.graph.cutting import study
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
        >>> net[0].weight.data, net[1].weight.data = torch.tensor([[2.0], [1.0]]), torch.tensor([[3.0, 1.0]])
        >>> network = study(net, torch.zeros(1, 1))
        >>> evidence = Evidence(net, [(torch.ones(1, 1), torch.zeros(1))], loss=lambda outputs, _: outputs.mean())
        >>> neuron_taylor(network.coupling.groups, network, evidence)[0].tolist()  # gradient · weight: 6 + 6, 1 + 1
        [144.0, 4.0]
    """
    names = parameters_of(groups, network)

    def gradients() -> Iterable[Mapping[str, torch.Tensor]]:
        for batch in batches_of(evidence):
            found = mean_gradients(replace(evidence, data=[batch]), names)
            yield {name: gradient[None] for name, gradient in found.items()}

    return mean_squared_changes(groups, network, gradients())


def neuron_fisher(groups: Sequence[Group], network: Anatomy, evidence: Evidence) -> Scores:
    """(Σ g·w)² over all parameters of a channel, averaged over samples: the Fisher information of a mask on it.

    Group Fisher pruning (Liu et al., ICML 2021, eq. 5; Theis et al., 2018, eq. 7) without their division by the cost. They put
    the mask on what a layer reads, for which ∂L/∂m = Σ g·w over that layer's weights; here every tensor of the group has it.

    Args:
        groups: of coupled channels.
        network: they belong to.
        evidence: with data and loss.

    Returns:
        For each group scores (group.size,), at least 0.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> from featherweight.graph.cutting import study
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
        >>> net[0].weight.data, net[1].weight.data = torch.tensor([[2.0], [1.0]]), torch.tensor([[3.0, 1.0]])
        >>> network = study(net, torch.zeros(1, 1))
        >>> batch = torch.tensor([[1.0], [-1.0]]), torch.zeros(2)
        >>> evidence = Evidence(net, [batch], loss=lambda outputs, _: outputs.mean())
        >>> neuron_fisher(network.coupling.groups, network, evidence)[0].tolist()  # 12² and (-12)², 2² and (-2)²
        [144.0, 4.0]
    """
    return mean_squared_changes(groups, network, sample_gradients(evidence, parameters_of(groups, network)))


def neuron_apoz(groups: Sequence[Group], network: Anatomy, evidence: Evidence) -> Scores:
    """The share of a channel's activations that are not zero, on data: 1 - APoZ (Hu et al., 2016, eq. 1).

    Which values are the activations: see `channel_activity`. After a nonlinearity that has no zeros (GELU, SiLU) all scores are
    1.

    Args:
        groups: of coupled channels.
        network: they belong to.
        evidence: with data, of which only the inputs count.

    Returns:
        For each group scores (group.size,), in [0, 1].

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> from torch import nn
        >>> from featherweight.graph.cutting import study
        >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
        >>> net[0].weight.data = torch.tensor([[1.0], [-1.0]])
        >>> network = study(net, torch.zeros(1, 1))
        >>> evidence = Evidence(net, [(torch.tensor([[1.0], [2.0], [3.0], [-1.0]]), torch.zeros(4))])
        >>> neuron_apoz(network.coupling.groups, network, evidence)[0].tolist()
        [0.75, 0.25]
    """
    return channel_activity(groups, network, evidence, measure=lambda value: value != 0)


def neuron_activation(groups: Sequence[Group], network: Anatomy, evidence: Evidence) -> Scores:
    """The mean absolute activation of a channel on data (Molchanov et al., ICLR 2017, section 2.2, "activation").

    Which values are the activations: see `channel_activity`.

    Args:
        groups: of coupled channels.
        network: they belong to.
        evidence: with data, of which only the inputs count.

    Returns:
        For each group scores (group.size,), at least 0.

    Raises:
        RequestError, DataError: as `batches_of` says.

    Example:
        >>> from torch import nn
        >>> from featherweight.graph.cutting import study
        >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Tanh(), nn.Linear(2, 1))
        >>> net[0].weight.data = torch.tensor([[9.0], [0.0]])
        >>> network = study(net, torch.zeros(1, 1))
        >>> evidence = Evidence(net, [(torch.tensor([[2.0], [-2.0]]), torch.zeros(2))])
        >>> neuron_activation(network.coupling.groups, network, evidence)[0].tolist()
        [1.0, 0.0]
    """
    return channel_activity(groups, network, evidence, measure=torch.abs)


def neuron_random(groups: Sequence[Group], network: Anatomy, evidence: Evidence) -> Scores:
    """A uniform random number for each channel: the control every criterion is held against.

    Args:
        groups: of coupled channels.
        network: not used.
        evidence: with the generator.

    Returns:
        For each group scores (group.size,), in [0, 1).

    Example:
        >>> from featherweight.graph.cutting import study
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))
        >>> network = study(net, torch.zeros(1, 1))
        >>> neuron_random(network.coupling.groups, network, Evidence(net))[0].shape
        torch.Size([2])
    """
    return [torch.rand(group.size, generator=evidence.generator) for group in groups]


def neuron_weight_scores(
    groups: Sequence[Group], network: Anatomy, evidence: Evidence, *, scores: Mapping[str, torch.Tensor]
) -> Scores:
    """The sum of given scores of single weights over a channel's slices: any criterion of weights becomes one of neurons.

    Args:
        groups: of coupled channels.
        network: they belong to.
        evidence: not used.
        scores: by the name of a tensor one number for each of its entries; other tensors count nothing.

    Returns:
        For each group scores (group.size,); None for one that has none of the tensors.

    Raises:
        RequestError: a name is no tensor of the network, or a shape not that tensor's.

    Example:
        >>> from featherweight.graph.cutting import study
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))
        >>> network = study(net, torch.zeros(1, 1))
        >>> given = {"1.weight": torch.tensor([[5.0, 3.0]])}
        >>> neuron_weight_scores(network.coupling.groups, network, Evidence(net), scores=given)[0].tolist()
        [5.0, 3.0]
    """
    for name, given in scores.items():
        shape = tuple(network.tensors[name].shape) if name in network.tensors else None
        if shape != tuple(given.shape):
            there = f"has shape {shape}" if shape is not None else "is none of them"
            raise RequestError(
                f"scores of weights must have the names and shapes of the network's tensors, got {tuple(given.shape)} for "
                f"{name!r}, which {there}"
            )
    found = []
    for group in groups:
        members = {key: indices for key, indices in group.members.items() if key[0] in scores}
        sums = [slice_sums(scores[name][None], axis, indices)[0] for (name, axis), indices in members.items()]
        found.append(torch.stack(sums).sum(dim=0) if sums else None)
    return found


NEURON_CRITERIA: dict[str, NeuronCriterion] = {
    "magnitude": neuron_magnitude,
    "group_l1": partial(neuron_magnitude, power=1),
    "l1": partial(neuron_filter_norm, power=1),
    "l2": partial(neuron_filter_norm, power=2),
    "bn_scale": neuron_batch_norm_scale,
    "fpgm": neuron_geometric_median,
    "taylor": neuron_taylor,
    "fisher": neuron_fisher,
    "apoz": neuron_apoz,
    "mean_activation": neuron_activation,
    "random": neuron_random,
}
