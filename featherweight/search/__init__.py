"""The search for the lightest network within a budget."""

from featherweight.search.budget import Budget
from featherweight.search.compress import Compressed, compress
from featherweight.search.recipe import Recipe
from featherweight.search.steps import ClusterWeights, Factorize, PruneNeurons, PruneWeights, QuantizeUniform

__all__ = [
    "Budget",
    "ClusterWeights",
    "Compressed",
    "Factorize",
    "PruneNeurons",
    "PruneWeights",
    "QuantizeUniform",
    "Recipe",
    "compress",
]
