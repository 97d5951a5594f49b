"""Fewer bits for each number as it is stored: 64 to 32, 32 to 16."""

from __future__ import annotations

import torch
from torch import nn

from featherweight.errors import WeightsError, check
from featherweight.graph.constraint import constrain_like, fold

__all__ = ["cast_weights"]

_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@torch.no_grad()
def cast_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Rounds all numbers of a network to those a smaller type has; the network computes in float32.

    A file holds them in the smaller type's bits, for packaging leaves out bits that are always zero: ResNet-20 for 28 x 28
    images takes 890,520 bytes in float32; rounded to bfloat16 349,389 and to float16 450,900, against 349,312 and 442,398 if
    the whole network were of these types. A network of such a type would also compute in it, which is slow and coarse on a
    CPU, and would want its inputs in it. So only the numbers are of the type.

    Args:
        model: any module; it is not changed. Constraints stay on tensors that still meet them, as masks always do.
        dtype: torch.float32, torch.float16 (11 significant bits, magnitudes up to 65,504) or torch.bfloat16 (8 significant
            bits, magnitudes as in float32).

    Returns:
        A copy of the same class, all its floats float32, with only such values as `dtype` has. Integers and complex numbers
        stay as they are.

    Raises:
        RequestError: another dtype.
        WeightsError: a number is not finite, or too large for `dtype`.

    Example:
        >>> layer = cast_weights(nn.Linear(2, 2).double(), torch.bfloat16)
        >>> layer.weight.dtype, bool((layer.weight == layer.weight.bfloat16()).all())
        (torch.float32, True)
    """
    check("dtype", dtype, "torch.float32, torch.float16 or torch.bfloat16", dtype in _TYPES)
    cast = fold(model)
    for name, tensor in (*cast.named_parameters(), *cast.named_buffers()):
        if not tensor.is_floating_point():
            continue
        rounded = tensor.to(dtype).float()
        if not bool(torch.isfinite(rounded).all()):
            raise WeightsError(
                f"numbers to store as {dtype} must be finite and at most {torch.finfo(dtype).max:g}, but {name!r} has "
                f"{float(tensor.abs().max()):g}; take torch.bfloat16 or torch.float32"
            )
        tensor.data = rounded
    constrain_like(cast, model)
    return cast
