"""The short ways to call operations do what the operations do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from featherweight.graph.functions import _BINDINGS, binding_of, functional, resolve_op


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


IMAGE, ROWS = numbers(2, 4, 6, 6), numbers(2, 3, 8)
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "add.Tensor": ((ROWS, numbers(8)), {"alpha": 2}),
    "add_.Tensor": ((ROWS, 3), {}),
    "avg_pool2d": ((IMAGE, [3, 3], [2, 2], [1, 1], True, False), {}),
    "batch_norm": ((IMAGE, numbers(4), None, numbers(4), numbers(4).abs(), True, 0.2, 1e-3, False), {}),
    "cat": (([ROWS, ROWS], 1), {}),
    "conv1d": ((ROWS, numbers(5, 3, 3), numbers(5), [2], [1]), {}),
    "conv2d": ((IMAGE, numbers(6, 2, 3, 3), None, [2, 1], [1, 1], [1, 1], 2), {}),
    "flatten.using_ints": ((IMAGE, 1, 2), {}),
    "gelu": ((ROWS,), {"approximate": "tanh"}),
    "hardtanh_": ((ROWS, 0.0, 6.0), {}),
    "layer_norm": ((ROWS, [8], numbers(8), None, 1e-4), {}),
    "linear": ((ROWS, numbers(5, 8), numbers(5)), {}),
    "matmul": ((ROWS, numbers(8, 2)), {}),
    "max_pool2d": ((IMAGE, [3, 3], [2, 2], [1, 1], [1, 1], True), {}),
    "mean.dim": ((IMAGE, [2, 3], True), {}),
    "mul.Tensor": ((ROWS, 0.5), {}),
    "permute": ((IMAGE, [0, 2, 3, 1]), {}),
    "relu": ((ROWS,), {}),
    "relu_": ((ROWS,), {}),
    "reshape": ((ROWS, [2, -1]), {}),
    "scaled_dot_product_attention": ((IMAGE, IMAGE, IMAGE, None, 0.0, True), {"scale": 0.3}),
    "sigmoid": ((ROWS,), {}),
    "silu": ((ROWS,), {}),
    "softmax.int": ((ROWS, -1), {}),
    "transpose.int": ((ROWS, 1, 2), {}),
    "view": ((ROWS, [6, 8]), {}),
}


@pytest.mark.parametrize("op", _BINDINGS)
def test_same_result_and_same_changes_in_place(op: str) -> None:
    assert binding_of(op) is not resolve_op(op)
    results = []
    for function in (resolve_op(op), binding_of(op)):
        args, kwargs = CALLS[op]
        args = tuple(arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args)
        results.append((function(*args, **kwargs), *(arg for arg in args if isinstance(arg, torch.Tensor))))
    assert all(torch.equal(have, want) for want, have in zip(*results, strict=True))


def test_others_are_called_as_they_are() -> None:
    assert binding_of("sub.Tensor") is resolve_op("sub.Tensor")
    assert functional("relu_") == "relu"
