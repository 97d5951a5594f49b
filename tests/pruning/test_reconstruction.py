"""Pruning that repairs, on networks: what stays makes up for what goes, in every kind of layer."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from featherweight.errors import DataError, RequestError
from featherweight.graph.constraint import constrained, fold
from featherweight.graph.selection import select_weights
from featherweight.pruning import (
    Mask,
    apply_masks,
    plan_weights,
    prune_reconstructing,
    prune_weights,
    reconstruct_weights,
)
from featherweight.pruning import reconstruction as under_test
from featherweight.quantization import cluster_weights
from featherweight.training import TensorLoader


@functools.cache
def inputs() -> torch.Tensor:
    """Images whose neighbouring pixels hang together."""
    noise = torch.randn(48, 4, 10, 10, generator=torch.Generator().manual_seed(0))
    return nn.functional.avg_pool2d(noise, 3, stride=1) * 3


DATA = TensorLoader(inputs(), torch.zeros(48, dtype=torch.int64), batch_size=20)


def net() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(1),
        nn.Linear(72, 5),
    )


def zeros(model: nn.Module) -> dict[str, int]:
    return {name: int((weight == 0).sum()) for name, weight in select_weights(model).items()}


def layer_errors(model: nn.Module, pruned: nn.Module) -> list[float]:
    """The squared change of each layer's outputs, for the inputs it had before."""
    x, errors = inputs(), []
    with torch.no_grad():
        for before, after in zip(model, fold(pruned), strict=True):
            if isinstance(before, nn.Conv2d | nn.Linear):
                errors.append(float((before(x) - after(x)).square().sum()))
            x = before(x)
    return errors


def uniformly(criterion: str, **options: object) -> nn.Module:
    return prune_weights(net(), sparsity=0.5, criterion=criterion, allocation="uniform", data=DATA, **options)  # type: ignore[arg-type]


def test_less_error_than_without_repair_in_every_layer() -> None:
    model = net()
    obs = layer_errors(model, prune_reconstructing(model, sparsity=0.5, data=DATA, method="obs"))
    blocks = layer_errors(model, prune_reconstructing(model, sparsity=0.5, data=DATA, method="sparsegpt"))
    for at in range(3):
        others = [layer_errors(model, uniformly(criterion))[at] for criterion in ("magnitude", "wanda")]
        assert obs[at] < blocks[at] < min(others)


def test_outputs_change_less_too() -> None:
    model, x = net(), inputs()
    pruned = prune_reconstructing(model, sparsity=0.5, data=DATA)
    before, after, plain = (m(x).detach() for m in (model, pruned, uniformly("magnitude")))
    assert float((after - before).square().sum()) < 0.5 * float((plain - before).square().sum())


@pytest.mark.parametrize("method", ["auto", "obs", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9])
def test_exact_counts(method: str, sparsity: float) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = prune_reconstructing(model, sparsity=sparsity, data=DATA, method=method)
    assert zeros(pruned) == {name: round(sparsity * weight.numel()) for name, weight in select_weights(model).items()}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all([type(c) for c in chain] == [Mask] for chain in constrained(pruned).values())
    assert len(constrained(pruned)) == 3
    if sparsity == 0:
        torch.testing.assert_close(pruned(inputs()), model(inputs()))
    for name, (mask,) in constrained(pruned).items():
        assert torch.equal(mask.mask, fold(pruned).get_parameter(name) != 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["obs", "sparsegpt"])
@pytest.mark.parametrize(("granularity", "kept", "of"), [("2:4", 2, 4), ("1:2", 1, 2)])
def test_patterns_lie_along_the_input_channels(method: str, granularity: str, kept: int, of: int) -> None:
    model = net()
    pruned = prune_reconstructing(model, sparsity=None, data=DATA, granularity=granularity, method=method)
    for weight in select_weights(pruned).values():
        neighbours = (weight != 0).movedim(1, -1).reshape(-1, of)
        assert (neighbours.sum(dim=1) == kept).all()
    plain = layer_errors(model, prune_weights(model, sparsity=None, granularity=granularity))
    assert all(new < old for new, old in zip(layer_errors(model, pruned), plain, strict=True))


def test_auto_takes_the_exact_method_for_small_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"sparsity": 0.5, "data": DATA}
    small = prune_reconstructing(net(), **options)  # type: ignore[arg-type]
    monkeypatch.setattr(under_test, "_MOST_FOR_EXACT", 8 * 36**3)  # the convolutions, not the last layer: 5 · 72³
    mixed = prune_reconstructing(net(), **options)  # type: ignore[arg-type]
    obs, blocks = (prune_reconstructing(net(), method=m, **options) for m in ("obs", "sparsegpt"))  # type: ignore[arg-type]
    for name in ("0.weight", "2.weight", "5.weight"):
        of = [select_weights(model)[name] for model in (small, mixed, obs, blocks)]
        assert torch.equal(of[0], of[2])
        assert torch.equal(of[1], of[3 if name == "5.weight" else 2])


def test_masks_of_any_criterion_can_be_repaired() -> None:
    model = net()
    masks = plan_weights(model, sparsity=0.5, criterion="wanda", allocation="row", data=DATA)
    plain, repaired = apply_masks(model, masks), reconstruct_weights(model, masks, data=DATA)
    assert zeros(plain) == zeros(repaired)
    for old, new in zip(layer_errors(model, plain), layer_errors(model, repaired), strict=True):
        assert new < 0.9 * old


def test_repair_is_least_squares_on_the_inputs() -> None:
    layer, x = nn.Linear(6, 1, bias=False).double(), torch.randn(30, 6, dtype=torch.float64)
    keep = torch.tensor([[True, False, True, True, False, True]])
    found = reconstruct_weights(layer, {"weight": keep}, data=[(x, x)], damping=1e-12)
    expected = torch.linalg.lstsq(x[:, keep[0]], layer(x).detach()).solution[:, 0]
    torch.testing.assert_close(found.weight[0, keep[0]].detach(), expected)


def test_what_is_gone_stays_gone_and_the_rest_is_repaired_again() -> None:
    once = prune_reconstructing(net(), sparsity=0.3, data=DATA)
    twice = prune_reconstructing(once, sparsity=0.6, data=DATA)
    assert zeros(twice) == {name: round(0.6 * weight.numel()) for name, weight in select_weights(once).items()}
    for name, weight in select_weights(once).items():
        assert not select_weights(twice)[name][weight == 0].any()
    assert zeros(prune_reconstructing(once, sparsity=0.1, data=DATA)) == zeros(once)


def test_trains_on_afterwards() -> None:
    pruned = prune_reconstructing(net(), sparsity=0.5, data=DATA)
    before = {name: weight.clone() for name, weight in select_weights(pruned).items()}
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    pruned(inputs()).square().mean().backward()
    optimizer.step()
    for name, weight in select_weights(pruned).items():
        assert torch.equal(weight == 0, before[name] == 0)
        assert not torch.equal(weight, before[name])


def test_inputs_that_are_always_zero() -> None:
    layer = nn.Linear(4, 3)
    x = torch.randn(20, 4) * torch.tensor([1.0, 0.0, 1.0, 0.0])
    for method in ("obs", "sparsegpt"):
        pruned = prune_reconstructing(layer, sparsity=0.5, data=[(x, x)], method=method)
        assert not pruned.weight[:, [1, 3]].any(), "what multiplies nothing goes first"
        torch.testing.assert_close(pruned(x), layer(x))
    nothing = prune_reconstructing(layer, sparsity=0.5, data=[(torch.zeros(3, 4), x)])
    assert int((nothing.weight == 0).sum()) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": None}, "sparsity"),
        ({"sparsity": 0.25, "granularity": "2:4"}, r"0\.5 or None for 2:4"),
        ({"sparsity": 0.5, "granularity": "row"}, "granularity"),
        ({"sparsity": None, "granularity": "2:5", "include": ["5.*"]}, r"multiple of 5.*5\.weight"),
        ({"sparsity": 0.5, "method": "obc"}, "did you mean 'obs'"),
        ({"sparsity": 0.5, "damping": 0.0}, "damping"),
        ({"sparsity": 0.5, "include": ["6.weight"]}, r"near are .*5\.weight"),
        ({"sparsity": 0.5, "data": None}, "reconstruction needs data"),
    ],
)
def test_wrong_requests(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        prune_reconstructing(net(), **{"data": DATA, **options})  # type: ignore[arg-type]


def test_other_wrong_requests() -> None:
    with pytest.raises(DataError):
        prune_reconstructing(net(), sparsity=0.5, data=[])
    with pytest.raises(RequestError, match=r"shape.*5\.weight"):
        reconstruct_weights(net(), {"5.weight": torch.ones(2, 2, dtype=torch.bool)}, data=DATA)
    with pytest.raises(RequestError, match=r"0\.weight has a Codebook"):
        prune_reconstructing(cluster_weights(net(), clusters=4), sparsity=0.5, data=DATA)
