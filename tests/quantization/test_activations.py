"""Quantized activations are integers times a step, trained with LSQ's gradients; nothing else about a network changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featherweight.errors import DataError, RequestError
from featherweight.graph.capture import capture, to_module
from featherweight.graph.program import ProgramModule
from featherweight.packaging import load, save
from featherweight.quantization.activations import find_quantizers, place_quantizers


def batches(*shape: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(16, *shape), torch.zeros(16)) for _ in range(2)]


def ops(net: ProgramModule) -> list[str]:
    return [node.op.partition(".")[0] for node in net.program.nodes]


def quantized(net: nn.Module, *shape: int, **options: Any) -> ProgramModule:
    return place_quantizers(to_module(net.eval(), torch.zeros(1, *shape)), calibrate=batches(*shape), **options)


@pytest.mark.parametrize("bits", [8, 3])
def test_a_network_computes_what_integers_give(bits: int) -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    result = quantized(net, 6, bits=bits)
    steps = {name: p.item() for name, p in result.named_parameters() if name.endswith("step")}
    low, high = {q.step: (q.low, q.high) for q in find_quantizers(result.program)}["input.step"]
    assert high - low == 2**bits - 1
    x = torch.randn(40, 6) * 2
    integers = np.clip(np.round(x.numpy() / np.float32(steps["input.step"])), low, high)
    sums = integers @ net[0].weight.detach().numpy().T * steps["input.step"] + net[0].bias.detach().numpy()
    hidden = np.clip(np.round(sums / steps["0.output_step"]), 0, 2**bits - 1)
    expected = hidden @ net[2].weight.detach().numpy().T * steps["0.output_step"] + net[2].bias.detach().numpy()
    with torch.no_grad():
        np.testing.assert_allclose(result(x), expected, rtol=1e-5, atol=1e-5)


def test_the_finest_grid_that_covers_what_was_seen() -> None:
    net = to_module(nn.Linear(1, 1), torch.zeros(1, 1))
    data = [(torch.tensor([[-0.5], [2.05]]), torch.zeros(2))]
    affine = place_quantizers(net, calibrate=data)
    symmetric = place_quantizers(net, calibrate=data, symmetric=True)
    bounds = [(q.low, q.high) for result in (affine, symmetric) for q in find_quantizers(result.program)]
    assert bounds == [(-50, 205), (-128, 127)]
    found = [result.get_parameter("input.step").item() for result in (affine, symmetric)]
    assert found == pytest.approx([2.55 / 255, 2.05 / 127])
    positive = place_quantizers(net, calibrate=[(torch.tensor([[0.0], [2.0]]), torch.zeros(2))], symmetric=True)
    assert [(q.low, q.high) for q in find_quantizers(positive.program)] == [(0, 255)]


def test_the_network_given_stays_as_it_was_and_its_modes_are_kept() -> None:
    net = to_module(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)), torch.zeros(1, 1, 8, 8)).train()
    net.get_parameter("0.weight").requires_grad_(False)
    program, before = net.program, {name: t.clone() for name, t in net.state_dict().items()}
    result = place_quantizers(net, calibrate=batches(1, 8, 8))
    assert net.program is program
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert result.training
    assert {name for name, p in result.named_parameters() if not p.requires_grad} == {"0.weight"}
    result.get_parameter("0.bias").data.zero_()
    assert net.get_parameter("0.bias").count_nonzero() == 2


@pytest.mark.parametrize(
    ("clip", "kept"),
    [(nn.ReLU(), False), (nn.ReLU(inplace=True), False), (nn.ReLU6(), False), (nn.Hardtanh(0.5, 6.0), True), (nn.SiLU(), True)],
)
def test_a_clip_goes_where_the_quantizer_does_its_work(clip: nn.Module, kept: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 8), clip, nn.Linear(8, 2))
    result = quantized(net, 4)
    assert any(op.removesuffix("_") in ("relu", "relu6", "hardtanh", "silu") for op in ops(result)) == kept
    x = torch.randn(8, 4)
    torch.testing.assert_close(result(x), net(x), rtol=0.05, atol=0.05)


def test_relu6_stays_where_the_grid_reaches_beyond_six() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).clamp(-8.0, 6.0))

    net = Net()
    nn.init.ones_(net.first.weight)
    nn.init.zeros_(net.first.bias)
    data = [(torch.tensor([[-8.0], [6.0]]), torch.zeros(2))]
    grid_within = place_quantizers(to_module(net, torch.zeros(1, 1)), calibrate=data)
    grid_beyond = place_quantizers(to_module(net, torch.zeros(1, 1)), calibrate=data, symmetric=True)
    clips = [ops(result).count("clamp") - len(find_quantizers(result.program)) for result in (grid_within, grid_beyond)]
    assert clips == [0, 1]
    x = torch.tensor([[7.9], [-8.0]])
    torch.testing.assert_close(grid_beyond(x), net(x), atol=0.1, rtol=0)


def test_moved_values_stay_as_they_are_and_share_their_step() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    result = quantized(net, 1, 6, 6)
    found = find_quantizers(result.program)
    assert [q.step for q in found] == ["input.step", "0.output_step", "0.output_step", "0.output_step"]
    assert len({name for name, _ in result.named_parameters() if name.endswith("step")}) == 2


def test_values_changed_in_place_are_read_as_before() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            z = nn.functional.relu_(y)
            return self.other(z) + y

    net = Net()
    x = torch.randn(8, 1, 4, 4)
    torch.testing.assert_close(quantized(net, 1, 4, 4)(x), net(x), rtol=0.05, atol=0.05)


def test_training_gets_lsqs_gradients() -> None:
    net = place_quantizers(
        to_module(nn.Linear(1, 1, bias=False), torch.zeros(1, 1)), calibrate=[(torch.tensor([[-1.0], [1.55]]), torch.zeros(2))]
    ).train()
    nn.init.ones_(net.get_parameter("weight"))
    (quantizer,) = find_quantizers(net.program)
    step = net.get_parameter("input.step")
    for value, slope in ((0.137, round(13.7) - 13.7), (9.0, quantizer.high), (-9.0, quantizer.low)):
        step.grad = None
        x = torch.tensor([[value]], requires_grad=True)
        net(x).sum().backward()
        assert step.grad is not None
        assert step.grad.item() == pytest.approx(slope, abs=2e-4)  # Esser et al. 2020, equation 3
        assert x.grad is not None
        assert x.grad.item() == pytest.approx(1.0 if abs(value) < 1 else 0.0)


def test_quantizers_are_found_in_anybodys_code_and_near_misses_are_not() -> None:
    class Net(nn.Module):
        def __init__(self, case: str) -> None:
            super().__init__()
            self.case, self.step, self.other = case, nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            low = 1 if self.case == "zero" else -4
            y = torch.clamp(torch.round(x / self.step), low, 3.5 if self.case == "bound" else 3)
            return y * (self.other if self.case == "steps" else self.step)

    counts = {case: len(find_quantizers(capture(Net(case), torch.zeros(1, 2)))) for case in ("", "zero", "bound", "steps")}
    assert counts == {"": 1, "zero": 0, "bound": 0, "steps": 0}


def test_a_file_keeps_a_quantized_network(tmp_path: Any) -> None:
    net = quantized(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)), 1, 8, 8)
    save(net, tmp_path / "net.fw", example=torch.zeros(1, 1, 8, 8))
    back = load(tmp_path / "net.fw")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(back(x), net(x))
    assert find_quantizers(back.program) == find_quantizers(net.program)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 9}, r"bits must be an integer in \[2, 8\], got 9"),
        ({"bits": 1}, "got 1"),
        ({"ranges": "minmaks"}, "did you mean 'minmax'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        quantized(nn.Linear(2, 2), 2, **options)


def test_nothing_to_quantize_and_data_that_do_not_fit() -> None:
    with pytest.raises(RequestError, match="needs a convolution or a linear layer"):
        quantized(nn.ReLU(), 2)
    with pytest.raises(DataError, match="got \\(16, 3\\)"):
        place_quantizers(to_module(nn.Linear(2, 2), torch.zeros(1, 2)), calibrate=batches(3))
