"""The user's own class after surgery, where its code runs with the new sizes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from featherweight.graph.capture import example_of, on_device_of
from featherweight.graph.constraint import duplicate
from featherweight.graph.program import Program, ProgramModule, tensor_called

__all__ = ["difference", "resized", "tolerance"]

_log = logging.getLogger(__name__)


def resized(folded: nn.Module, twin: ProgramModule, taken: Mapping[str, torch.Tensor]) -> nn.Module:
    """The user's own module with the new sizes, if it runs and agrees with its captured twin; else the twin.

    Args:
        folded: the module before, constraints folded; it is not changed.
        twin: the captured program after surgery.
        taken: the tensors that became smaller, by name.

    Returns:
        A module of the user's class, or `twin`; the log says why.
    """
    own = duplicate(folded)
    for name, tensor in taken.items():
        tensor_called(own, name).data = tensor.clone()
    _refresh_sizes(own, twin.program)
    inputs = on_device_of(twin, example_of(twin, batch=3, seed=1))
    check = duplicate(twin).eval()
    with torch.no_grad():
        expected = check(*inputs)
        try:
            distance = difference(duplicate(own).eval()(*inputs), expected)
        except Exception as error:  # it is the user's code, which may raise anything
            _log.warning("%s hard-wires a size (%s); a captured program comes back instead", type(folded).__name__, error)
            return twin
    if not distance <= tolerance(twin):
        message = "%s disagrees with its captured program after surgery (by %.2g); the program comes back"
        _log.warning(message, type(folded).__name__, distance)
        return twin
    return own


def _refresh_sizes(model: nn.Module, program: Program) -> None:
    """Sets the sizes that torch's own layers keep as attributes to those of their tensors."""
    groups = {program.tensor_name(n.args[1]): n.args[6] for n in program.nodes if n.op.startswith("conv") and len(n.args) > 6}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for kinds, (leaf, refresh) in _REFRESH.items():
            weight = getattr(module, leaf, None)
            if isinstance(module, kinds) and isinstance(weight, torch.Tensor):
                refresh(module, weight, groups.get(f"{prefix}{leaf}", getattr(module, "groups", 1)))


def _refresh_conv(module: Any, weight: torch.Tensor, groups: int) -> None:
    transposed = bool(module.transposed)
    module.groups = groups
    module.out_channels = weight.shape[1] * groups if transposed else weight.shape[0]
    module.in_channels = weight.shape[0] if transposed else weight.shape[1] * groups


def _refresh_linear(module: Any, weight: torch.Tensor, _: int) -> None:
    module.out_features, module.in_features = weight.shape


def _refresh_norm(module: Any, weight: torch.Tensor, _: int) -> None:
    module.num_features = weight.shape[0]


def _refresh_layer_norm(module: Any, weight: torch.Tensor, _: int) -> None:
    module.normalized_shape = tuple(weight.shape)


def _refresh_group_norm(module: Any, weight: torch.Tensor, _: int) -> None:
    module.num_groups = weight.shape[0] if module.num_groups == module.num_channels else module.num_groups
    module.num_channels = weight.shape[0]


def _refresh_prelu(module: Any, weight: torch.Tensor, _: int) -> None:
    module.num_parameters = weight.shape[0]


def _refresh_embedding(module: Any, weight: torch.Tensor, _: int) -> None:
    module.num_embeddings, module.embedding_dim = weight.shape


def _refresh_recurrent(module: Any, weight: torch.Tensor, _: int) -> None:
    module.input_size, module.hidden_size = weight.shape[1], module.weight_hh_l0.shape[1]
    module.flatten_parameters()


def _refresh_cell(module: Any, weight: torch.Tensor, _: int) -> None:
    module.input_size, module.hidden_size = weight.shape[1], module.weight_hh.shape[1]


# Torch's own layers keep sizes as attributes, and their `forward` or its checks read them; the weight that tells the sizes.
_REFRESH: dict[Any, tuple[str, Callable[[Any, torch.Tensor, int], None]]] = {
    nn.modules.conv._ConvNd: ("weight", _refresh_conv),
    nn.Linear: ("weight", _refresh_linear),
    nn.modules.batchnorm._NormBase: ("weight", _refresh_norm),
    (nn.LayerNorm, nn.RMSNorm): ("weight", _refresh_layer_norm),
    nn.GroupNorm: ("weight", _refresh_group_norm),
    nn.PReLU: ("weight", _refresh_prelu),
    nn.Embedding: ("weight", _refresh_embedding),
    nn.RNNBase: ("weight_ih_l0", _refresh_recurrent),
    nn.RNNCellBase: ("weight_ih", _refresh_cell),
}


def tolerance(model: nn.Module) -> float:
    """The largest relative difference between two ways of computing one thing: ten times √ε of the coarsest weight."""
    floats = [t.dtype for t in model.state_dict().values() if t.is_floating_point()]
    return float(10 * max((torch.finfo(dtype).eps for dtype in floats), default=0.0) ** 0.5)


def difference(a: Any, b: Any) -> float:
    """The largest difference between two outputs of any structure, relative to the largest number in them; NaN if one is."""
    worst = [torch.tensor(0.0)]
    for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True):
        if not isinstance(x, torch.Tensor):
            worst.append(torch.tensor(0.0 if x == y else torch.inf))
        elif x.shape != y.shape:
            return torch.inf
        elif x.numel():
            x, y = x.double().cpu(), y.double().cpu()
            worst.append((x - y).abs().max() / y.abs().max().clamp(min=1e-12))
    return float(torch.stack([w.double() for w in worst]).max())
