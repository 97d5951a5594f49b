"""2:4 on sparse tensor cores: the same outputs where there are any, and a clear refusal where there are none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.pruning import prune_weights, semi_structured
from featherweight.pruning.semi_structured import to_semi_structured

has_sparse_cores = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
needs_sparse_cores = pytest.mark.skipif(not has_sparse_cores, reason="needs a CUDA GPU of compute capability 8.0 or above")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def test_refused_on_the_cpu() -> None:
    model = prune_weights(net(), sparsity=0.5, granularity="2:4")
    with pytest.raises(RequestError, match=r"capability 8.0 or above, got a network on cpu; move it there with model.cuda()"):
        to_semi_structured(model)


def test_refused_on_an_older_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi_structured, "device_of", lambda model: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    with pytest.raises(RequestError, match=r"got T4 with 7\.5"):
        to_semi_structured(net())


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked after the device can be checked without one; torch itself then refuses to compress on the CPU."""
    monkeypatch.setattr(semi_structured, "_check_device", lambda device: None)


@pytest.mark.usefixtures("any_device")
def test_refused_without_the_pattern() -> None:
    with pytest.raises(RequestError, match="two zeros in each four neighbours along its inputs, got none of 2"):
        to_semi_structured(net().half())
    with pytest.raises(RequestError, match="got none of 1"):
        to_semi_structured(nn.Linear(6, 4).half())


@pytest.mark.usefixtures("any_device")
def test_refused_in_other_types() -> None:
    with pytest.raises(RequestError, match=r"float16, bfloat16 or int8, got torch.float32 for 0; use model.half\(\)"):
        to_semi_structured(prune_weights(net(), sparsity=0.5, granularity="2:4"))


@pytest.mark.usefixtures("any_device")
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about the CPU")
def test_what_torch_refuses_is_passed_on() -> None:
    model = prune_weights(net(), sparsity=0.5, granularity="2:4").half()
    before = model[0].weight.clone()  # type: ignore[index]
    with pytest.raises(RequestError, match=r"size that the GPU takes, got none; 0: .*CUDA"):
        to_semi_structured(model)
    assert torch.equal(model[0].weight, before)  # type: ignore[index]


@needs_sparse_cores
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_same_outputs_on_the_gpu(dtype: torch.dtype) -> None:
    model = prune_weights(net(), sparsity=0.5, granularity="2:4").to("cuda", dtype).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast, inputs = to_semi_structured(model), torch.randn(64, 256, device="cuda", dtype=dtype)
    assert type(fast[0].weight).__name__.startswith("SparseSemiStructured")  # type: ignore[index]
    assert type(fast[2].weight) is nn.Parameter, "10 outputs are no multiple that the kernels take"  # type: ignore[index]
    with torch.no_grad():
        torch.testing.assert_close(fast(inputs), model(inputs), rtol=2e-2, atol=2e-2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
