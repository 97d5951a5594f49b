"""The networks of the experiment `dynamic`: each is trained once, and kept for the cells that time it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.dynamic import (
    ExitNetwork,
    Reinforcement,
    SkipNetwork,
    SlimmableExitNetwork,
    SlimmableNetwork,
    add_exits,
    add_gates,
    add_widths,
    cool,
    exit_loss,
    fit_heads,
    load_dynamic,
    make_slimmable,
    recalibrate,
    reinforce,
    save_dynamic,
    skip_loss,
    tune_widths,
)
from featherweight.experiments.experiment import Cell, Lab
from featherweight.graph.capture import to_module
from featherweight.nets import msdnet, resnet
from featherweight.nets.layers import conv_norm
from featherweight.packaging import load, save
from featherweight.pruning import prune_neurons
from featherweight.training import Data, Tuning, fit

__all__ = ["KINDS", "WIDTHS", "Kind", "conv_head", "data_of", "network", "own_class"]

WIDTHS = (0.25, 0.5, 0.75, 1.0)

_BATCH = 64
_RATE = 2e-3
_STRIDE = 2
_PLACES = (0.11, 0.32, 0.62)  # of the exits, in shares of the MACs: after blocks 1, 3 and 6 of 9
_WORK = 0.3  # the weight of a sample's MACs in the loss of gates
_HEAD = 32  # channels
_RECALIBRATED_ON = 32  # batches


def conv_head(channels: int, positions: tuple[int, ...], classes: int) -> nn.Module:
    """An exit with a layer of its own: a convolution of stride 2 to 32 channels, and a linear layer on all of them.

    Args:
        channels: C.
        positions: rows and columns.
        classes: number of logits.

    Returns:
        (B, C, rows, columns) -> (B, classes).

    Example:
        >>> conv_head(16, (14, 14), 10)(torch.zeros(2, 16, 14, 14)).shape
        torch.Size([2, 10])
    """
    rows, columns = (-(-size // 2) for size in positions)
    return nn.Sequential(conv_norm(channels, _HEAD, 3, stride=2), nn.Flatten(1), nn.Linear(_HEAD * rows * columns, classes))


@dataclass(frozen=True)
class Kind:
    """A way to make a network.

    Attributes:
        title: what tables call it.
        make: trains one; torch's global generator has been seeded.
        save, load: how it is kept in a file.
    """

    title: str
    make: Callable[[Cell, Lab], nn.Module]
    save: Callable[[Any, Path], int] = save
    load: Callable[[Path], Any] = load


def network(kind: str, cell: Cell, lab: Lab) -> Any:
    """A trained network in eval mode, from the lab's folder if an earlier cell left it there.

    Args:
        kind: a name in `KINDS`.
        cell: its "data", "seed", "samples", "depth" and "epochs".
        lab: where data and networks are.

    Returns:
        The network; the same, bit for bit, whichever cell trained it.
    """
    name = "-".join(str(cell[key]) for key in ("data", "samples", "depth", "epochs", "seed"))
    path = lab.out / "networks.checkpoint" / f"{name}-{kind}.fw"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell["seed"])
            KINDS[kind].save(KINDS[kind].make(cell, lab).eval(), path)
    return KINDS[kind].load(path).eval()


def data_of(cell: Cell, lab: Lab) -> Data:
    """The cell's data, in batches of 64 for training."""
    return lab.data(cell["data"], batch_size=_BATCH, samples=cell["samples"])


def own_class(net: nn.Module, cell: Cell) -> nn.Module:
    """The plain network as its author wrote it, not as a captured program, with the same weights.

    Args:
        net: the captured one.
        cell: its "depth".

    Returns:
        The network in eval mode.
    """
    own = resnet(cell["depth"], stride=_STRIDE)
    own.load_state_dict(net.state_dict())
    return own.eval()


def _tuning(cell: Cell, *, share: float = 1.0) -> Tuning:
    """How all are trained, for a share of the cell's epochs; bf16 halves the time of a convolution where the CPU has it."""
    return Tuning(epochs=max(1, round(share * cell["epochs"])), learning_rate=_RATE, precision="bf16-mixed")


def _fresh(cell: Cell) -> nn.Module:
    """New weights, of the same seed for all that start from scratch."""
    torch.manual_seed(cell["seed"])
    return resnet(cell["depth"], stride=_STRIDE)


def _fit(model: nn.Module, cell: Cell, lab: Lab, **options: Any) -> nn.Module:
    fit(model, data_of(cell, lab).train, _tuning(cell), seed=cell["seed"], progress=lab.progress, **options)
    return model


def _example(cell: Cell, lab: Lab) -> torch.Tensor:
    return data_of(cell, lab).example


def _plain(cell: Cell, lab: Lab) -> nn.Module:
    return to_module(_fit(_fresh(cell), cell, lab), _example(cell, lab))


def _first_exit(cell: Cell, lab: Lab) -> nn.Module:
    """What the network with exits is up to its first one."""
    whole = _fresh(cell)
    trunk = [whole.get_submodule(name) for name in ("conv", "norm", "relu", "stage1.0")]
    with torch.no_grad():
        _, channels, *positions = nn.Sequential(*trunk)(_example(cell, lab)[:1]).shape
    return to_module(_fit(nn.Sequential(*trunk, conv_head(channels, tuple(positions), 10)), cell, lab), _example(cell, lab))


def _narrow(width: float) -> Callable[[Cell, Lab], nn.Module]:
    def make(cell: Cell, lab: Lab) -> nn.Module:
        return _fit(make_slimmable(_fresh(cell), _example(cell, lab), widths=(width,)).extract(width), cell, lab)

    return make


def _pruned(sparsity: float) -> Callable[[Cell, Lab], nn.Module]:
    def make(cell: Cell, lab: Lab) -> nn.Module:
        data = data_of(cell, lab)
        net = to_module(prune_neurons(network("plain", cell, lab), data.example, sparsity=sparsity), data.example)
        fit(net, data.train, _tuning(cell, share=2 / 3), seed=cell["seed"], progress=lab.progress)
        return net

    return make


def _exits(*, early: float = 1.0, distillation: float = 0.0) -> Callable[[Cell, Lab], nn.Module]:
    """With the weight in the loss of every exit but the last, whose weight is 1."""

    def make(cell: Cell, lab: Lab) -> nn.Module:
        net = add_exits(_fresh(cell), _example(cell, lab), at=_PLACES, heads=conv_head, seed=cell["seed"])
        weights = [early] * (len(net.stages) - 1) + [1.0]
        return _fit(net, cell, lab, loss=exit_loss(weights=weights, distillation=distillation))

    return make


def _frozen(cell: Cell, lab: Lab) -> ExitNetwork:
    data = data_of(cell, lab)
    net = add_exits(network("plain", cell, lab), data.example, at=_PLACES, heads=conv_head, seed=cell["seed"])
    fit_heads(net, data.train, _tuning(cell), seed=cell["seed"], progress=lab.progress)
    return net


def _msdnet(cell: Cell, lab: Lab) -> nn.Module:
    torch.manual_seed(cell["seed"])
    net = ExitNetwork(msdnet(exits=4, layers=1, channels=8, growth=4), _example(cell, lab))
    return _fit(net, cell, lab, loss=exit_loss())


def _combined(cell: Cell, lab: Lab) -> SlimmableExitNetwork:
    data = data_of(cell, lab)
    exits = add_exits(_fresh(cell), data.example, at=_PLACES, heads=conv_head, seed=cell["seed"])
    net = add_widths(exits, widths=(0.5, 1.0))
    tune_widths(net.slimmable, data.train, _tuning(cell), loss=exit_loss(), seed=cell["seed"], progress=lab.progress)
    return net


def _skips(cell: Cell, lab: Lab) -> SkipNetwork:
    """From the plain network: straight-through gates for two thirds of the epochs, then policy gradients for one."""
    data, seed = data_of(cell, lab), cell["seed"]
    net = add_gates(network("plain", cell, lab), data.example, seed=seed)
    loss = skip_loss(cost=_WORK)
    fit(net, data.train, _tuning(cell, share=2 / 3), loss=loss, seed=seed, progress=lab.progress, after_step=cool())
    how = Reinforcement(reward="loss", cost=_WORK, joint=True)
    reinforce(net, data.train, _tuning(cell, share=1 / 3), how, seed=seed, progress=lab.progress)
    return net


def _slimmable(*, switchable: bool) -> Callable[[Cell, Lab], nn.Module]:
    def make(cell: Cell, lab: Lab) -> SlimmableNetwork:
        data = data_of(cell, lab)
        net = make_slimmable(_fresh(cell), data.example, widths=WIDTHS, switchable=switchable)
        tune_widths(net, data.train, _tuning(cell), seed=cell["seed"], progress=lab.progress)
        return net

    return make


def _recalibrated(cell: Cell, lab: Lab) -> SlimmableNetwork:
    net: SlimmableNetwork = network("shared", cell, lab)
    recalibrate(net, list(islice(data_of(cell, lab).train, _RECALIBRATED_ON)))
    return net


KINDS: Mapping[str, Kind] = {
    "plain": Kind("plain", _plain),
    "joint": Kind("exits", _exits(), save_dynamic, load_dynamic),
    "distilled": Kind("exits, distilled", _exits(distillation=0.5), save_dynamic, load_dynamic),
    "exits": Kind("exits, distilled, of weight 0.3", _exits(early=0.3, distillation=0.5), save_dynamic, load_dynamic),
    "frozen": Kind("exits, on a frozen trunk", _frozen, save_dynamic, load_dynamic),
    "first-exit": Kind("up to the first exit, trained alone", _first_exit),
    **{f"narrow-{width}": Kind(f"width {width}, trained alone", _narrow(width)) for width in WIDTHS[:-1]},
    "pruned-0.3": Kind("30 % of the channels pruned", _pruned(0.3)),
    "pruned-0.5": Kind("50 % of the channels pruned", _pruned(0.5)),
    "slimmable": Kind("slimmable", _slimmable(switchable=True), save_dynamic, load_dynamic),
    "shared": Kind("slimmable, shared batch norms", _slimmable(switchable=False), save_dynamic, load_dynamic),
    "recalibrated": Kind("the same, recalibrated", _recalibrated, save_dynamic, load_dynamic),
    "combined": Kind("exits x widths", _combined, save_dynamic, load_dynamic),
    "skips": Kind("skips", _skips, save_dynamic, load_dynamic),
    "msdnet": Kind("MSDNet", _msdnet, save_dynamic, load_dynamic),
}
"""Kinds of networks by name."""
