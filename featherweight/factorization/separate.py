"""A network of one's own as a compact one: its convolutions become compact blocks, and learn from what they were."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from featherweight.distillation import Features, Lesson, teach
from featherweight.errors import RequestError, check, look_up
from featherweight.factorization.blocks import BLOCKS, Block
from featherweight.factorization.layers import as_thin, macs_of, weights_of
from featherweight.factorization.network import look, replace_layers
from featherweight.graph.capture import Example
from featherweight.graph.program import ProgramModule
from featherweight.training.loaders import Loader
from featherweight.training.loop import Tuning
from featherweight.training.progress import Progress, silent

__all__ = ["separate_convolutions"]

_log = logging.getLogger(__name__)

_ORDERS = ("together", "in turns")


def separate_convolutions(
    model: nn.Module,
    example: Example,
    data: Loader,
    *,
    block: str = "separable",
    multiplier: int = 1,
    order: str = "together",
    lesson: Lesson | None = None,
    tuning: Tuning | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """Replaces convolutions by compact blocks, and distils these from the network.

    A block is depthwise separable (Howard et al., "MobileNets", 2017), a fire module (Iandola et al., "SqueezeNet", 2016) or a
    ghost module (Han et al., "GhostNet", 2020). Each starts as a fit of its form to the old weight on the data (see the
    functions in `BLOCKS`), then learns to give what the old layer gave (a hint for each layer, Romero et al. 2015), and in the
    end all learn together to answer as the network did. What a block cannot stand for stays, such as convolutions with groups,
    and so does what would not get both fewer weights and fewer multiply-accumulates.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.
        data: batches of (inputs, targets).
        block: a name in `BLOCKS`.
        multiplier: how rich blocks are, at least 1: kernels for each input channel of a separable one, channels behind the
            squeeze of a fire module in eighths of its outputs; ghost modules have one size.
        order: "together" replaces all layers, then trains; "in turns" replaces and trains one after the other, first to last,
            which costs a training each and is gentler.
        lesson: what is learnt of the outputs, `Lesson()` by default.
        tuning: of each training, `Tuning(epochs=5)` by default.
        include: shell-style patterns of weight names; only these, if given.
        exclude: patterns of names to leave alone.
        seed: of the training, in [0, 2**32).
        progress: told about every batch.

    Returns:
        The compact network. A captured program, if the user's own class cannot have other layers; it then learns from the
        outputs alone, and the log says so.

    Raises:
        RequestError: no convolution can become such a block (each is named with its reason), or an option out of range.
        CaptureError, UnsupportedOpError: as `capture` says.
        TrainingError: as `fit` says.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(72, 2))
        >>> data = [(torch.randn(8, 3, 5, 5), torch.zeros(8, dtype=torch.int64))]
        >>> compact = separate_convolutions(net, torch.zeros(1, 3, 5, 5), data, tuning=Tuning(epochs=1))
        >>> [tuple(layer.weight.shape) for layer in compact[2]]
        [(8, 1, 3, 3), (8, 8, 1, 1)]
    """
    kind = look_up(BLOCKS, block, "block")
    whole = isinstance(multiplier, int) and not isinstance(multiplier, bool) and multiplier >= 1
    check("multiplier", multiplier, "a whole number >= 1", whole)
    check("multiplier", multiplier, f"1 for {block} blocks, which have one size", kind.sized or multiplier == 1)
    check("order", order, f"one of {', '.join(_ORDERS)}", order in _ORDERS)
    names = _find_layers(model, example, kind, multiplier, block, include, exclude)
    lesson, tuning = lesson or Lesson(), tuning or Tuning(epochs=5)
    student = model
    for some in [names] if order == "together" else [[name] for name in names]:
        network = look(student, example, data, include=some)
        student = replace_layers(student, network, {name: kind.make(network.layers[name], multiplier) for name in some})
        if isinstance(student, ProgramModule):
            _log.warning("layers of a captured program cannot learn from those of the network: its outputs alone teach it")
            continue
        paths = [name.rpartition(".")[0] for name in some]
        hints = replace(lesson, features=Features({path: path for path in paths}))
        teach(student, model, data, tuning, lesson=hints, seed=seed, progress=progress)
    teach(student, model, data, tuning, lesson=lesson, seed=seed, progress=progress)
    return student


def _find_layers(
    model: nn.Module,
    example: Example,
    kind: Block,
    size: int,
    name: str,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> list[str]:
    """The weights whose layers become blocks, in the order of the network."""
    network = look(model, example, None, include=include, exclude=exclude)
    skipped, found = dict(network.skipped), []
    for weight, layer in network.layers.items():
        skipped[weight] = kind.fits(layer)
        if skipped[weight]:
            continue
        before, after = [as_thin(layer)], kind.make(layer, size)
        costs = [(weights_of(each), macs_of(each, layer.size)) for each in (before, after)]
        if costs[1][0] < costs[0][0] and costs[1][1] < costs[0][1]:
            found.append(weight)
        else:
            skipped[weight] = f"it would have {costs[1][0]} of {costs[0][0]} weights, {costs[1][1]} of {costs[0][1]} MACs"
    if not found:
        reasons = "; ".join(f"{weight}: {why}" for weight, why in skipped.items()) or "it has none"
        raise RequestError(f"no convolution of {type(model).__name__} can become a {name} block: {reasons}")
    return found
