"""Storage types: every number is one of the smaller type, the nearest; the file is really smaller."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import featherweight
from featherweight.errors import RequestError, WeightsError
from featherweight.graph.constraint import constrain, constrained, fold
from featherweight.pruning import Mask, prune_weights
from featherweight.quantization import Codebook, Grid, cluster_weights
from featherweight.quantization.storage import cast_weights

TYPES = [torch.float32, torch.float16, torch.bfloat16]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(40, 60), nn.BatchNorm1d(60), nn.ReLU(), nn.Linear(60, 30))
    made[1].running_var.uniform_(0.5, 2)
    return made.eval()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16])
def test_every_number_is_the_nearest_of_the_type(dtype: torch.dtype, given: torch.dtype) -> None:
    model = net().to(given)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cast = cast_weights(model, dtype)
    assert type(cast) is nn.Sequential
    for name, tensor in cast.state_dict().items():
        if before[name].is_floating_point():
            assert torch.equal(tensor, before[name].to(dtype).float())
            assert tensor.dtype is torch.float32
        else:
            assert torch.equal(tensor, before[name])
    assert all(
        torch.equal(tensor, before[name]) and tensor.dtype is before[name].dtype for name, tensor in model.state_dict().items()
    )
    assert cast(torch.randn(3, 40)).dtype is torch.float32


def test_files_shrink_as_if_the_whole_network_were_of_the_type(tmp_path: Path) -> None:
    def size(model: nn.Module, dtype: torch.dtype = torch.float32) -> int:
        featherweight.save(model, tmp_path / "net.fw", example=torch.zeros(2, 80, dtype=dtype))
        return (tmp_path / "net.fw").stat().st_size

    torch.manual_seed(0)
    layer = nn.Linear(80, 50, dtype=torch.float64)
    single = size(cast_weights(layer, torch.float32))
    assert single < 0.6 * size(layer, torch.float64)
    for dtype, share in ((torch.float16, 0.6), (torch.bfloat16, 0.5)):
        found = size(cast_weights(layer, dtype))
        assert found < share * single
    assert found < 1.1 * size(fold(layer).bfloat16(), torch.bfloat16)


def test_masks_and_shared_values_stay() -> None:
    model = cluster_weights(prune_weights(net(), sparsity=0.5), clusters=5)
    cast = cast_weights(model, torch.bfloat16)
    assert constrained(cast).keys() == constrained(model).keys()
    assert {type(c) for chain in constrained(cast).values() for c in chain} == {Codebook}
    for (name, now), (_, before) in zip(fold(cast).named_parameters(), fold(model).named_parameters(), strict=True):
        assert torch.equal(now, before.bfloat16().float()), name
    masked = cast_weights(prune_weights(net(), sparsity=0.5), torch.float16)
    assert [type(c) for chain in constrained(masked).values() for c in chain] == [Mask, Mask]


def test_constraints_that_are_broken_go(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    constrain(model, "0.weight", Grid(torch.tensor(0.0123), -128, 127))
    assert constrained(cast_weights(model, torch.bfloat16)) == {}
    assert "0.weight does not meet its Grid" in caplog.text


@pytest.mark.parametrize("value", [1e5, float("nan"), float("inf")])
def test_numbers_that_the_type_has_not(value: float) -> None:
    model = net()
    model[3].bias.data[2] = value
    with pytest.raises(WeightsError, match=r"'3.bias' has .*; take torch.bfloat16"):
        cast_weights(model, torch.float16)
    assert model[0].weight.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, None, "float16"])
def test_other_types(dtype: object) -> None:
    with pytest.raises(RequestError, match=r"dtype must be torch\.float32, torch\.float16 or torch\.bfloat16"):
        cast_weights(net(), dtype)  # type: ignore[arg-type]
