"""Multiply-accumulates against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featherweight.graph.capture import capture, tensors_of
from featherweight.graph.cost import count_macs
from featherweight.nets import NETS


def macs(model: nn.Module, *shapes: tuple[int, ...], batch: int = 3) -> int:
    program = capture(model, tuple(torch.zeros(batch, *shape) for shape in shapes))
    return count_macs(program, tensors_of(model, program))


class Function(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.function(*args)  # type: ignore[operator]


def test_lenet5() -> None:
    """conv1 20 x 24² x 25, conv2 50 x 8² x 500, fc1 800 x 500, fc2 500 x 10."""
    assert macs(NETS["lenet5"](), (1, 28, 28)) == 288_000 + 1_600_000 + 400_000 + 5_000 == 2_293_000


def test_lenet_300_100() -> None:
    assert macs(NETS["lenet-300-100"](), (1, 28, 28)) == 784 * 300 + 300 * 100 + 100 * 10


def test_resnet20() -> None:
    """A stage has half the sides and twice the channels of the last: its 3 x 3 convolutions but the first cost the same."""
    same = 16 * 16 * 9 * 32 * 32
    stem, first_of_stage = 3 * 16 * 9 * 32 * 32, same // 2
    projections = 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8
    assert (
        macs(NETS["resnet20"](input_shape=(3, 32, 32)), (3, 32, 32))
        == stem + 16 * same + 2 * first_of_stage + projections + 640
    )


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Conv2d(8, 8, 3, groups=8, padding=1), (8, 5, 5), 8 * 25 * 9),
        (nn.Conv2d(8, 16, 3, groups=8, padding="same"), (8, 5, 5), 16 * 25 * 9),
        (nn.Conv2d(8, 12, 3, groups=4, stride=2), (8, 7, 7), 12 * 9 * 2 * 9),
        (nn.Conv1d(4, 6, 5), (4, 20), 6 * 16 * 4 * 5),
        (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 3 * 27 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 4 * 25 * 6 * 4),
        (nn.Linear(7, 5), (7,), 35),
        (nn.Linear(7, 5), (11, 7), 11 * 35),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)), (4, 8, 8), 0),
    ],
)
def test_layers(model: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert macs(model, shape) == expected


def test_products() -> None:
    assert macs(Function(torch.matmul), (3, 4), (4, 5)) == 3 * 4 * 5
    assert macs(Function(torch.bmm), (3, 4), (4, 5)) == 3 * 4 * 5
    assert macs(Function(lambda x, y: x @ y.transpose(-1, -2)), (2, 3, 4), (2, 6, 4)) == 2 * 3 * 4 * 6
    # 2 heads, 3 queries, 7 keys, keys of 4 numbers, values of 5
    assert macs(Function(F.scaled_dot_product_attention), (2, 3, 4), (2, 7, 4), (2, 7, 5)) == 2 * 3 * 7 * (4 + 5)


def test_the_batch_does_not_count() -> None:
    model = nn.Conv2d(3, 4, 3)
    assert macs(model, (3, 9, 9), batch=1) == macs(model, (3, 9, 9), batch=7) == 4 * 49 * 27
