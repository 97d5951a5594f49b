"""Modes for a while."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherweight.training.mode import device_of, in_mode


@pytest.mark.parametrize("training", [True, False])
def test_each_submodule_gets_its_own_mode_back_even_after_an_error(training: bool) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model[1].eval()

    def run() -> None:
        with in_mode(model, training=training):
            assert {module.training for module in model.modules()} == {training}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert [module.training for module in model.modules()] == [True, True, False, False]


def test_device_of() -> None:
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta"
    only_buffer = nn.Module()
    only_buffer.register_buffer("b", torch.zeros(1, device="meta"))
    assert device_of(only_buffer).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"
