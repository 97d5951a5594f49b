"""Equal sizes at every step of the comparison of at once with little by little."""

from __future__ import annotations

import pytest
import torch

from featherweight.experiments.sizes import weight_sparsity_for
from featherweight.experiments.why_prune import fewer_neurons, shares
from featherweight.measuring import count_nonzero, count_parameters
from featherweight.nets import lenet_300_100
from featherweight.pruning import prune_weights

IMAGES = torch.zeros(2, 1, 28, 28)


@pytest.mark.parametrize("kept", [0.5, 0.02])
def test_both_paces_end_at_the_same_size(kept: float) -> None:
    big = lenet_300_100()
    at_once = fewer_neurons(big, kept, IMAGES)
    slowly = big
    for share in shares(kept, rounds=3, growing=2):
        slowly = fewer_neurons(slowly, share, IMAGES)
        assert slowly.fc1.out_features == round(300 * share)
        assert slowly.fc2.out_features == round(100 * share)
    parameters = count_parameters(at_once)
    assert count_parameters(slowly) == parameters
    sparse = big
    for share in shares(parameters / 266_610, rounds=3, growing=2):
        sparse = prune_weights(sparse, sparsity=weight_sparsity_for(big, round(266_610 * share)))
    assert count_nonzero(sparse) == parameters


def test_shares_fall_evenly_and_then_stay() -> None:
    left = shares(0.02, rounds=8, growing=6)
    ratios = [later / earlier for earlier, later in zip([1.0, *left], left, strict=False)]
    assert ratios[:6] == pytest.approx([0.02 ** (1 / 6)] * 6)
    assert left[5:] == pytest.approx([0.02] * 3)
    assert shares(0.02, rounds=8, growing=1) == [0.02] * 8
