"""Ranks: by energy, and what stands out of noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import RequestError
from featherweight.factorization.ranks import rank_by_energy, rank_by_vbmf


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(0.01, 1.0))
def test_energy_is_held_by_no_fewer(values: list[float], energy: float) -> None:
    energies = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank = rank_by_energy(energies, energy)
    total = energies.sum() * (1 + 1e-9)
    assert energies[:rank].sum() * (1 + 1e-9) >= energy * energies.sum()
    assert rank == 1 or energies[: rank - 1].sum() < energy * total


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.1])
def test_energy_is_a_share(energy: float) -> None:
    with pytest.raises(RequestError, match=r"energy must be in \(0, 1\]"):
        rank_by_energy(torch.ones(3), energy)


@pytest.mark.parametrize("rank", [0, 1, 5, 20])
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_components_that_stand_out_of_noise_are_found(rank: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in (80, 150))
    matrix = noise * (3 * left @ right.T + torch.randn(80, 150, generator=generator, dtype=torch.float64))
    assert rank_by_vbmf(torch.linalg.svdvals(matrix).square(), 150) == rank


def test_nothing_stands_out_of_nothing() -> None:
    assert rank_by_vbmf(torch.zeros(4), 5) == 0
    with pytest.raises(RequestError, match="at least the 4 energies"):
        rank_by_vbmf(torch.ones(4), 3)
