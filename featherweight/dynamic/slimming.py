"""Which layers may be narrow: a width for every group of channels, under a limit of MACs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from featherweight.dynamic.sandwich import with_batch_statistics
from featherweight.dynamic.widths import SlimmableNetwork
from featherweight.errors import RequestError, check
from featherweight.graph.cost import count_macs
from featherweight.training.loaders import Loader
from featherweight.training.loop import Loss, mean_loss

__all__ = ["find_shape"]


@torch.no_grad()
def find_shape(
    network: SlimmableNetwork, data: Loader, *, macs: float, step: float = 0.125, loss: Loss = cross_entropy
) -> tuple[int, ...]:
    """The widths of single layers that keep a limit of MACs and most of the accuracy: AutoSlim (Yu and Huang, 2019).

    From the full width on, the group goes a step narrower whose step costs the least loss for each MAC it saves, until the
    limit is kept. As theirs it is a search in a network that was trained at all widths, best at such of single layers, too
    (`Sandwich(uniform=False)`); what it finds is trained on, or anew. They compare accuracies, which tie more often than
    losses, and not what is saved; batch norms take the statistics of each batch, so that no shape is recalibrated.

    Args:
        network: trained at many widths, see `tune_widths`; it is not changed.
        data: batches of (inputs, targets) that it was not trained on; a few hundred samples do, in batches of many.
        macs: multiply-accumulates of a sample, at most.
        step: the share of a group's channels that go at once, in (0, 1); at least one channel, and one of each group stays.
        loss: (outputs, targets) -> scalar, the mean over the batch.

    Returns:
        The number of channels that stay of each group, for `SlimmableNetwork.add` or `view`.

    Raises:
        RequestError: a setting is out of range, or the narrowest shape exceeds the limit.
        DataError: there is no batch.

    Example:
        >>> from featherweight.dynamic.widths import make_slimmable
        >>> layers = [torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)]
        >>> net = make_slimmable(torch.nn.Sequential(*layers), torch.zeros(1, 4))
        >>> shape = find_shape(net, [(torch.randn(32, 4), torch.zeros(32, dtype=torch.int64))], macs=40)
        >>> net.add("slim", shape)
        >>> net.cost("slim").macs <= 40
        True
    """
    check("macs", macs, "above 0", macs > 0)
    check("step", step, "in (0, 1)", 0 < step < 1)
    sizes = network.shape(1.0)
    steps = [max(1, round(step * size)) for size in sizes]
    narrowest = [1] * len(sizes)
    if _macs(network, narrowest) > macs:
        least = _macs(network, narrowest)
        raise RequestError(f"a limit must leave a channel of each group, which takes {least} MACs, got {macs}")
    shape, spent, lost = sizes, _macs(network, sizes), _loss(network, sizes, data, loss)
    while spent > macs:
        narrower = [(*shape[:g], max(1, shape[g] - steps[g]), *shape[g + 1 :]) for g in range(len(shape)) if shape[g] > 1]
        options = [(option, _macs(network, option), _loss(network, option, data, loss)) for option in narrower]
        shape, spent, lost = min(options, key=lambda option: (option[2] - lost) / max(1, spent - option[1]))
    return shape


def _macs(network: SlimmableNetwork, shape: Sequence[int]) -> int:
    view = network.view(shape)
    return count_macs(view.program, view.tensors())


def _loss(network: SlimmableNetwork, shape: Sequence[int], data: Loader, loss: Loss) -> float:
    net, _ = with_batch_statistics(network.view(shape))
    return mean_loss(net, data, loss=loss)
