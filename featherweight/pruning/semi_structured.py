"""2:4 sparse weights on the tensor cores that have them: NVIDIA GPUs of compute capability 8.0 and above."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import fold
from featherweight.training.mode import device_of

__all__ = ["to_semi_structured"]

_DTYPES = (torch.float16, torch.bfloat16, torch.int8)


def to_semi_structured(model: nn.Module) -> nn.Module:
    """A copy for inference whose linear layers with 2:4 sparse weights multiply on sparse tensor cores (Mishra et al., 2021).

    Constraints are folded. Every `nn.Linear` whose weight has at most two of each four neighbours along its inputs gets a
    `torch.sparse` semi-structured tensor in its place: half the bytes in memory, up to twice the speed for large batches. The
    other layers stay as they are, and so does a layer whose sides the GPU's kernels do not take (multiples of 32 and 64 for
    16-bit floats, at the time of writing).

    Args:
        model: on a CUDA GPU, its linear weights in float16, bfloat16 or int8; it is not changed. See
            `prune_weights(model, sparsity=0.5, granularity="2:4")`.

    Returns:
        The copy. Its sparse weights cannot be trained, pruned or saved.

    Raises:
        RequestError: the model is not on a GPU with such cores, its weights are of another type, or no weight is 2:4 sparse or
            of a size that the kernels take.

    Example:
        >>> from featherweight.pruning import prune_weights
        >>> if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        ...     layer = prune_weights(nn.Linear(128, 128), sparsity=0.5, granularity="2:4")
        ...     fast = to_semi_structured(layer.cuda().half())
    """
    _check_device(device_of(model))
    twin = fold(model)
    layers = {name: module for name, module in twin.named_modules() if type(module) is nn.Linear}
    sparse = {name: layer for name, layer in layers.items() if _is_two_of_four(layer.weight)}
    if not sparse:
        rule = "at least one linear weight must have two zeros in each four neighbours along its inputs"
        raise RequestError(f"{rule}, got none of {len(layers)}; prune with sparsity=0.5, granularity='2:4'")
    wrong = {name: layer.weight.dtype for name, layer in sparse.items() if layer.weight.dtype not in _DTYPES}
    if wrong:
        name, dtype = next(iter(wrong.items()))
        raise RequestError(f"sparse tensor cores take float16, bfloat16 or int8, got {dtype} for {name}; use model.half()")
    refused = {}
    for name, layer in sparse.items():
        try:
            layer.weight = _compressed(layer.weight)
        except RuntimeError as error:  # torch says there which sizes its kernels take
            refused[name] = str(error)
    if len(refused) == len(sparse):
        name, reason = next(iter(refused.items()))
        raise RequestError(f"at least one 2:4 sparse weight must be of a size that the GPU takes, got none; {name}: {reason}")
    return twin.eval().requires_grad_(False)


def _check_device(device: torch.device) -> None:
    rule = "2:4 sparsity runs on a CUDA GPU of compute capability 8.0 or above"
    if device.type != "cuda":
        raise RequestError(f"{rule}, got a network on {device}; move it there with model.cuda(), if there is one")
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise RequestError(f"{rule}, got {torch.cuda.get_device_name(device)} with {capability[0]}.{capability[1]}")


def _is_two_of_four(weight: torch.Tensor) -> bool:
    if weight.shape[1] % 4:
        return False
    return bool(((weight.reshape(-1, 4) != 0).sum(dim=1) <= 2).all())


def _compressed(weight: torch.Tensor) -> nn.Parameter:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor is in prototype stage", UserWarning)
        return nn.Parameter(torch.sparse.to_sparse_semi_structured(weight.detach().contiguous()), requires_grad=False)
