"""The parts by themselves: prune a network, save it as one small file, look into the file, load it, measure it."""

from __future__ import annotations

import torch
from torch import nn

import featherweight as fw
from featherweight.packaging import inspect
from featherweight.pruning import prune_weights
from featherweight.reporting import print_contents, print_report


def main() -> None:
    """Writes net.fw into the working directory."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)).eval()
    example = torch.randn(4, 3, 8, 8)

    pruned = prune_weights(net, sparsity=0.9)
    size = fw.save(pruned, "net.fw", example=example)
    contents = inspect("net.fw")
    print_contents(contents)
    print("all parts together:", contents.total_bytes == size)

    loaded = fw.load("net.fw")  # needs neither the code above nor pickle
    print("the same outputs:", torch.equal(loaded(example), pruned(example)))
    print_report(fw.measure("net.fw"))


if __name__ == "__main__":
    main()
