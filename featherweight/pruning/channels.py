"""The slices of a network's tensors that make up a channel, and sums over them: what criteria of neurons are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from featherweight.graph.cutting import Anatomy
from featherweight.graph.groups import Axis, Group

__all__ = ["batch_norm_scales", "matrices_of", "mean_squared_changes", "parameters_of", "slice_means", "slice_sums"]


def slice_sums(values: torch.Tensor, axis: int, indices: torch.Tensor) -> torch.Tensor:
    """For each channel the sum over its slice of a tensor.

    Args:
        values: numbers for each entry of the tensor, (B, *the tensor's shape).
        axis: the axis of the tensor along which the channels lie.
        indices: the indices of that axis that belong to each channel, (channels, k).

    Returns:
        Shape (B, channels), at least in single precision.

    Example:
        >>> slice_sums(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), 1, torch.tensor([[0], [1]])).tolist()
        [[4.0, 6.0]]
    """
    others = [other for other in range(1, values.dim()) if other != axis + 1]
    precision = torch.promote_types(values.dtype, torch.float32)
    lines = values.sum(dim=others, dtype=precision) if others else values.to(precision)
    return lines[:, indices.to(lines.device)].sum(dim=2)


def slice_means(
    members: Mapping[Axis, torch.Tensor], tensors: Mapping[str, torch.Tensor], measure: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """For each channel the mean of a measure over its slice of a tensor, and of that the mean over the tensors.

    As it is a mean for each tensor first, a producer of few weights counts as much as a consumer of many.

    Args:
        members: the channels' slices, at least one.
        tensors: the network's tensors by name.
        measure: from a tensor to one number for each of its entries.

    Returns:
        Shape (channels,).

    Example:
        >>> members = {("w", 0): torch.tensor([[0], [1]])}
        >>> slice_means(members, {"w": torch.tensor([[1.0, 3.0], [5.0, -5.0]])}, torch.abs).tolist()
        [2.0, 5.0]
    """
    means = []
    for (name, axis), indices in members.items():
        tensor = tensors[name]
        entries = tensor.numel() // tensor.shape[axis] * indices.shape[1]
        means.append(slice_sums(measure(tensor)[None], axis, indices)[0] / entries)
    return torch.stack(means).mean(dim=0)


def matrices_of(group: Group, tensors: Mapping[str, torch.Tensor]) -> dict[Axis, torch.Tensor]:
    """The slices of a group that lie in matrices and kernels; in vectors, if it has no others.

    Biases and the vectors of norms are left out, for they are of another scale than weights, and some are statistics.

    Args:
        group: the coupled channels.
        tensors: the network's tensors by name.

    Returns:
        A part of `group.members`, never empty.

    Example:
        >>> group = Group("w", {("w", 0): torch.tensor([[0]]), ("b", 0): torch.tensor([[0]])})
        >>> list(matrices_of(group, {"w": torch.zeros(1, 3), "b": torch.zeros(1)}))
        [('w', 0)]
    """
    members = group.members
    return {key: indices for key, indices in members.items() if tensors[key[0]].dim() >= 2} or dict(members)


def batch_norm_scales(network: Anatomy) -> list[str]:
    """The names of the scales (γ) of a network's batch norms.

    Args:
        network: any.

    Returns:
        The names, in the order in which the network computes; a batch norm without a scale has none.

    Example:
        >>> from featherweight.graph.cutting import study
        >>> batch_norm_scales(study(torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)), torch.zeros(2, 4)))
        ['0.weight']
    """
    norms = [node for node in network.program.nodes if node.op == "batch_norm"]
    names = [network.program.tensor_name(node.args[1]) for node in norms]
    return list(dict.fromkeys(name for name in names if name is not None))


def parameters_of(groups: Sequence[Group], network: Anatomy) -> list[str]:
    """The names of the parameters in some groups; the statistics of batch norms are buffers, and have no gradient.

    Args:
        groups: some of the network's.
        network: they belong to.

    Returns:
        Each name once, in the program's order.

    Example:
        >>> from featherweight.graph.cutting import study
        >>> network = study(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.zeros(1, 4))
        >>> parameters_of(network.coupling.groups, network)
        ['0.weight', '0.bias', '1.weight']
    """
    members = {name for group in groups for name, _ in group.members}
    return [spec.name for spec in network.program.tensors if spec.kind == "parameter" and spec.name in members]


def mean_squared_changes(
    groups: Sequence[Group], network: Anatomy, chunks: Iterable[Mapping[str, torch.Tensor]]
) -> list[torch.Tensor]:
    """For each channel the mean over gradients g of (Σ g·w)², the sum over all its entries of the tensors that have a gradient.

    Args:
        groups: some of the network's.
        network: gives the weights w.
        chunks: by tensor some gradients, (B, *the tensor's shape).

    Returns:
        For each group a tensor (group.size,), at least 0.

    Example:
        >>> from featherweight.graph.cutting import study
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))
        >>> net[1].weight.data = torch.tensor([[2.0, 3.0]])
        >>> network = study(net, torch.zeros(1, 1))
        >>> gradients = {"1.weight": torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])}
        >>> mean_squared_changes(network.coupling.groups, network, [gradients])[0].tolist()
        [2.0, 4.5]
    """
    totals = [torch.zeros(group.size, dtype=torch.float64) for group in groups]
    count = 0
    for chunk in chunks:
        changes = {name: gradients * network.tensors[name] for name, gradients in chunk.items()}
        for total, group in zip(totals, groups, strict=True):
            members = {key: indices for key, indices in group.members.items() if key[0] in changes}
            sums = [slice_sums(changes[name], axis, indices) for (name, axis), indices in members.items()]
            total += torch.stack(sums).sum(dim=0).double().square().sum(dim=0).cpu() if sums else 0
        count += len(next(iter(chunk.values()), ()))
    return [total / max(count, 1) for total in totals]
