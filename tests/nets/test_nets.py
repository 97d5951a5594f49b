"""Every network of the table: sizes as in the papers, any batch, and a program that gives the same outputs."""

from __future__ import annotations

import pytest
import torch

from featherweight.errors import RequestError
from featherweight.nets import NETS, resnet
from tests.nets.small import CLASSES, COMPACT, SHAPE, captured, small

COUNTS = [
    ("mlp", (1, 8, 8), 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10),
    ("lenet-300-100", (1, 28, 28), 266_610),  # LeCun et al. (1998); Han et al. (2015) write 267K
    ("lenet5", (1, 28, 28), 431_080),  # Caffe; Han et al. (2015) write 431K
    ("resnet20", (3, 32, 32), 269_722 + 512 + 64 + 2048 + 128),  # He et al. (2016) with identity shortcuts, plus projections
    ("resnet20", (1, 28, 28), 272_474 - 2 * 16 * 9),
]


@pytest.mark.parametrize(("name", "input_shape", "count"), COUNTS)
def test_parameters_are_as_many_as_in_the_papers(name: str, input_shape: tuple[int, ...], count: int) -> None:
    model = NETS[name](input_shape=input_shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)])
def test_residual_networks_of_any_depth(depth: int, count: int) -> None:
    with torch.device("meta"):
        model = resnet(depth, input_shape=(3, 32, 32))
    assert sum(parameter.numel() for parameter in model.parameters()) == count + 512 + 64 + 2048 + 128  # as above


@pytest.mark.parametrize(("depth", "stride"), [(21, 1), (2, 1), (20, 3)])
def test_residual_networks_of_no_depth(depth: int, stride: int) -> None:
    with pytest.raises(RequestError, match="of resnet must be"):
        resnet(depth, stride=stride)


SHAPES = [
    *(("mlp", shape) for shape in ((1, 8, 8), (5,), (2, 3, 4, 5))),
    *(("lenet-300-100", shape) for shape in ((1, 28, 28), (7,))),
    *(("lenet5", shape) for shape in ((1, 28, 28), (3, 16, 16), (1, 17, 40))),
    *(("resnet20", shape) for shape in ((1, 8, 8), (3, 32, 32), (2, 9, 15))),
    *((name, shape) for name in COMPACT for shape in ((1, 16, 16), (2, 28, 33))),
    *((name, (1, 8, 8)) for name in COMPACT if name != "squeezenet"),
]


@pytest.mark.parametrize(("name", "input_shape"), SHAPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_output_shape(name: str, input_shape: tuple[int, ...], batch: int) -> None:
    model = small(name, input_shape=input_shape, classes=4).eval()
    assert model(torch.randn(batch, *input_shape)).shape == (batch, 4)


@pytest.mark.parametrize("name", NETS)
def test_captured_program_gives_the_same_for_any_batch(name: str) -> None:
    model, program = captured(name)
    for batch in (1, 7):
        inputs = torch.randn(batch, *SHAPE)
        assert model(inputs).shape == (batch, CLASSES)
        assert torch.allclose(program(inputs), model(inputs), atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_is_trained(name: str) -> None:
    model = small(name, input_shape=(1, 16, 16))
    model(torch.randn(4, 1, 16, 16)).square().sum().backward()
    assert [n for n, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenet5", {"input_shape": (1, 15, 28)}, r"lenet5 needs images .* at least 16x16 pixels, got \(1, 15, 28\)"),
        ("lenet5", {"input_shape": (784,)}, "lenet5 needs images"),
        ("resnet20", {"input_shape": (1, 7, 8)}, "at least 8x8 pixels"),
        ("mlp", {"input_shape": (0,)}, r"mlp needs an input shape of sizes >= 1, .* got \(0,\)"),
        ("lenet-300-100", {"input_shape": ()}, "lenet-300-100 needs an input shape"),
        ("mlp", {"classes": 0}, "mlp needs at least 1 class, got 0"),
        ("resnet20", {"classes": 0}, "resnet20 needs at least 1 class, got 0"),
    ],
)
def test_wrong_sizes_are_errors(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        NETS[name](**options)


def test_smallest_lenet5_has_one_pixel_left() -> None:
    assert NETS["lenet5"](input_shape=(1, 16, 16)).get_submodule("fc1").in_features == 50
