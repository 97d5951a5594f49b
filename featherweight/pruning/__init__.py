"""Pruning: weights that become zero and stay zero, and neurons that really go."""

from featherweight.pruning.neurons import plan_neurons, prune_neurons
from featherweight.pruning.weights import GradualPruning, Mask, apply_masks, plan_weights, prune_weights

__all__ = ["GradualPruning", "Mask", "apply_masks", "plan_neurons", "plan_weights", "prune_neurons", "prune_weights"]
