"""Low rank and separable: layers as products of thin ones."""

from featherweight.factorization.blocks import BLOCKS
from featherweight.factorization.clock import factorize_within
from featherweight.factorization.factorize import FactorPlan, factorize, plan_factors
from featherweight.factorization.ranks import rank_by_energy, rank_by_vbmf
from featherweight.factorization.separate import separate_convolutions

__all__ = [
    "BLOCKS",
    "FactorPlan",
    "factorize",
    "factorize_within",
    "plan_factors",
    "rank_by_energy",
    "rank_by_vbmf",
    "separate_convolutions",
]
