"""The search for the lightest network within a budget."""

from featherweight.search.budget import Budget
from featherweight.search.compress import Compressed, compress
from featherweight.search.recipe import ClusterWeights, PruneNeurons, PruneWeights, Recipe

__all__ = ["Budget", "ClusterWeights", "Compressed", "PruneNeurons", "PruneWeights", "Recipe", "compress"]
