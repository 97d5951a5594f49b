"""Torch-Pruning's side, with all the help its examples give: sparsity 0.5 in every group, by magnitude.

Beyond its defaults: the classifier is ignored, attention is unfused (`zoo.build` does it), every projection named like one of
`PROJECTIONS` beside a `num_heads` is told that number, and what attention layers remember of their sizes is corrected
afterwards; torchvision's vision transformers round to the number of heads and get their `hidden_dim`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch_pruning
from checks import (
    TOLERANCE,
    check_backward,
    check_gone,
    check_same,
    check_shape,
    check_step,
    count,
    difference,
    run,
    run_precisely,
)
from masking import Kept, difference_from_masked
from record import Record
from torch import nn
from zoo import Entry, example

__all__ = ["examine"]

PROJECTIONS = frozenset(
    "qkv qkv_proj q k v kv q_proj k_proj v_proj kv_proj to_q to_k to_v to_kv to_qkv query key value".split()
)


def examine(entry: Entry, dense: nn.Module, record: Record, *, unlimited: Callable[[], None]) -> None:
    """Fills the record; the dense network is known to run, and `unlimited` lifts the limit of time."""
    facts = record.facts
    smaller = copy.deepcopy(dense)
    with record.stage("graph", needed=True):
        pruner = _pruner(smaller, example(entry))
    with record.stage("prune", needed=True), _watching():
        for group in pruner.step(interactive=True):
            group.prune()
        _correct_sizes(smaller, pruner)
    unlimited()
    facts["gone"] = round(1 - count(smaller) / count(dense), 4)
    kept = {name: p.kept for name, p in smaller.named_parameters(remove_duplicate=False) if hasattr(p, "kept")}
    with record.stage("forward", needed=True):
        run(smaller, example(entry, seed=5))
    with record.stage("gone"):
        check_gone(facts["gone"])
    with record.stage("equal"):
        _check_equal(entry, dense, kept, smaller, record)
    with record.stage("batch"):
        check_shape(smaller, dense, entry)
    with record.stage("backward"):
        facts["without_gradient"] = len(check_backward(smaller, entry))
    with record.stage("step"):
        check_step(smaller, entry)


def _pruner(model: nn.Module, inputs: torch.Tensor) -> Any:
    """One that was never used: its defaults `dict()` are shared between all pruners of a process."""
    vit = type(model).__name__ == "VisionTransformer" and type(model).__module__.startswith("torchvision")
    return torch_pruning.pruner.MetaPruner(
        model,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        global_pruning=False,
        pruning_ratio=0.5,
        iterative_steps=1,
        ignored_layers=[m for m in model.modules() if _outputs(m) == 1000],
        num_heads={projection: heads for _, _, projection, heads in _attention(model)},
        in_channel_groups={},
        out_channel_groups={},
        channel_groups={},
        round_to=model.encoder.layers[0].num_heads if vit else None,
    )


def _outputs(module: nn.Module) -> int | None:
    """The number of outputs of a layer that may be a classifier: the datasets have 1000 classes."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def _attention(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module, int]]:
    """Each module with heads, with the name and the module of each of its projections, and the number of heads."""
    for module in model.modules():
        heads = getattr(module, "num_heads", None)
        if isinstance(heads, int) and heads > 0:
            for name, child in module.named_children():
                if name in PROJECTIONS and isinstance(child, nn.Linear | nn.Conv2d):
                    yield module, name, child, heads


def _correct_sizes(model: nn.Module, pruner: Any) -> None:
    """Attention layers reshape by what they remember of their sizes."""
    for module, name, projection, heads in list(_attention(model)):
        parts = 3 if "qkv" in name else 2 if "kv" in name else 1
        module.num_heads = pruner.num_heads.get(projection, heads)
        size = _outputs(projection) // (parts * module.num_heads)
        if hasattr(module, "head_dim"):
            module.head_dim = size
        if hasattr(module, "attn_dim"):
            module.attn_dim = size * module.num_heads
    if hasattr(model, "conv_proj") and hasattr(model, "hidden_dim"):
        model.hidden_dim = model.conv_proj.out_channels


@contextmanager
def _watching() -> Iterator[None]:
    """Every parameter cut inside gets an attribute `kept`: for each axis the indices, of the dense one's, that it still has."""
    base = torch_pruning.pruner.function.BasePruningFunc
    cut = base._prune_parameter_and_grad

    def noting(self: Any, weight: torch.Tensor, indices: Any, axis: int) -> torch.Tensor:
        result: torch.Tensor = cut(self, weight, indices, axis)
        axis %= weight.dim()
        before = getattr(weight, "kept", {})
        had = before.get(axis, range(weight.shape[axis]))
        result.kept = {**before, axis: [had[int(i)] for i in indices]}
        return result

    with mock.patch.object(base, "_prune_parameter_and_grad", noting):
        yield


def _check_equal(entry: Entry, dense: nn.Module, kept: Kept, smaller: nn.Module, record: Record) -> None:
    """The pruned network agrees with the dense one in which all it cut is zero."""
    facts = record.facts
    inputs, (found, before) = run_precisely(entry, lambda: smaller, lambda: dense)
    allowed = TOLERANCE[inputs.dtype]
    facts["equal_in"] = str(inputs.dtype).removeprefix("torch.")
    facts["mask_changes"] = difference(found, before)
    facts["difference"] = difference_from_masked(dense, kept, found, inputs, enough=allowed)
    check_same("the masked and the pruned network", facts["difference"], allowed)
