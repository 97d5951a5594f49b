"""In-memory batches: every sample once per pass, in an order that the seed decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import DataError, RequestError
from featherweight.training.loaders import TensorLoader


@given(samples=st.integers(1, 40), batch_size=st.integers(1, 50), shuffle=st.booleans())
def test_every_sample_once_with_its_target(samples: int, batch_size: int, shuffle: bool) -> None:
    inputs = torch.arange(samples)[:, None] * 10
    loader = TensorLoader(inputs, torch.arange(samples), batch_size, shuffle=shuffle)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert [len(targets) for _, targets in batches[:-1]] == [batch_size] * (len(batches) - 1)
    targets = torch.cat([targets for _, targets in batches])
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), targets[:, None] * 10)
    assert sorted(targets.tolist()) == list(range(samples))
    if not shuffle:
        assert targets.tolist() == list(range(samples))


def order(loader: TensorLoader) -> list[int]:
    return [int(target) for _, targets in loader for target in targets]


def test_global_seed_decides_the_order() -> None:
    loader = TensorLoader(torch.zeros(50, 1), torch.arange(50), 8, shuffle=True)
    torch.manual_seed(1)
    first, second = order(loader), order(loader)
    torch.manual_seed(1)
    assert order(loader) == first
    assert first != second


def test_augment_changes_the_batches_and_not_the_data() -> None:
    data = torch.ones(5, 2)
    loader = TensorLoader(data, torch.zeros(5), 2, augment=lambda inputs: inputs + len(inputs))
    assert [inputs.flatten().tolist() for inputs, _ in loader] == [[3.0] * 4, [3.0] * 4, [2.0] * 2]
    assert torch.equal(data, torch.ones(5, 2))


def test_wrong_sizes_are_errors() -> None:
    with pytest.raises(DataError, match="one target for each input, at least one, got 3 and 2"):
        TensorLoader(torch.zeros(3), torch.zeros(2))
    with pytest.raises(DataError, match="got 0 and 0"):
        TensorLoader(torch.zeros(0), torch.zeros(0))
    with pytest.raises(RequestError, match="batch_size must be >= 1, got 0"):
        TensorLoader(torch.zeros(3), torch.zeros(3), 0)
