"""How many components a weight keeps."""

from __future__ import annotations

import math

import torch

from featherweight.errors import check

__all__ = ["rank_by_energy", "rank_by_vbmf"]


def rank_by_energy(energies: torch.Tensor, energy: float) -> int:
    """The fewest components that hold a share of the energy.

    Args:
        energies: squared singular values, decreasing, shape (n,).
        energy: the share, in (0, 1].

    Returns:
        The rank, in [1, n].

    Raises:
        RequestError: the share is out of range.

    Example:
        >>> rank_by_energy(torch.tensor([9.0, 4.0, 1.0]), 0.9)
        2
    """
    check("energy", energy, "in (0, 1]", 0 < energy <= 1)
    held = energies.double().cumsum(0)
    return min(int((held < energy * held[-1] * (1 - 1e-12)).sum()) + 1, len(energies))


def rank_by_vbmf(energies: torch.Tensor, columns: int) -> int:
    """The number of components that stand out of Gaussian noise, the strength of the noise estimated with it.

    The global analytic solution of empirical variational Bayesian matrix factorization (Nakajima, Sugiyama, Babacan and
    Tomioka, JMLR 2013, theorem 2 and section 4.2: the objective Ω over σ², minimised here on a grid that is refined three
    times).

    Args:
        energies: all squared singular values γ² of a matrix (rows, columns) with rows <= columns, decreasing, shape (rows,).
        columns: the longer side, at least the number of energies.

    Returns:
        The rank, in [0, rows].

    Raises:
        RequestError: there are fewer columns than energies.

    Example:
        >>> noise = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
        >>> rank_by_vbmf(torch.linalg.svdvals(noise + torch.ones(40, 60)).square(), 60)
        1
    """
    rows = len(energies)
    check("columns", columns, f"at least the {rows} energies", columns >= rows)
    squares = energies.double().clamp_min(0)
    total = float(squares.sum())
    if total == 0:
        return 0
    alpha = rows / columns
    tau = 2.5129 * math.sqrt(alpha)
    edge = (1 + tau) * (1 + alpha / tau)
    most = min(math.ceil(rows / (1 + alpha)) - 1, rows - 1)
    low = max(float(squares[most]) / (columns * edge), float(squares[most:].mean()) / columns, 1e-12 * total / (rows * columns))
    high = total / (rows * columns)
    for _ in range(3):
        grid = torch.logspace(math.log10(low), math.log10(max(high, low)), 300, dtype=torch.float64)
        best = int(_objective(squares, columns, grid, alpha, edge).argmin())
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 299)])
    variance = math.sqrt(low * high)
    return int((squares > columns * edge * variance).sum())


def _objective(squares: torch.Tensor, columns: int, variances: torch.Tensor, alpha: float, edge: float) -> torch.Tensor:
    """Ω at each variance of the noise, up to a constant (their equation 29)."""
    x = squares[None].clamp_min(1e-30) / (columns * variances[:, None])
    inside = (x - (1 + alpha)).square() - 4 * alpha
    tau = (x - (1 + alpha) + inside.clamp_min(0).sqrt()) / 2
    beyond = x > edge
    tau = torch.where(beyond, tau, 1.0)
    gain = (tau + 1).log() + alpha * (tau / alpha + 1).log() - tau
    return (x - x.log() + torch.where(beyond, gain, 0.0)).sum(1)
