"""Pruning: weights that become zero and stay zero, and neurons that really go."""

from featherweight.pruning.iterative import prune_neurons_iteratively, prune_weights_iteratively
from featherweight.pruning.layers import LayerPlan, plan_layers, prune_layers
from featherweight.pruning.lottery import find_ticket
from featherweight.pruning.neurons import plan_neurons, prune_neurons
from featherweight.pruning.reconstruction import prune_reconstructing, reconstruct_weights
from featherweight.pruning.regrowth import Regrowth
from featherweight.pruning.regularization import BatchNormL1, GroupLasso
from featherweight.pruning.semi_structured import to_semi_structured
from featherweight.pruning.sensitivity import Sensitivity, scan_sensitivity
from featherweight.pruning.supermask import EdgePopup, LearnedMask, set_signed_constants, train_supermask
from featherweight.pruning.trajectory import Movement, PathIntegral
from featherweight.pruning.weights import GradualPruning, Mask, apply_masks, plan_weights, prune_weights
from featherweight.training.statistics import Evidence

__all__ = [
    "BatchNormL1",
    "EdgePopup",
    "Evidence",
    "GradualPruning",
    "GroupLasso",
    "LayerPlan",
    "LearnedMask",
    "Mask",
    "Movement",
    "PathIntegral",
    "Regrowth",
    "Sensitivity",
    "apply_masks",
    "find_ticket",
    "plan_layers",
    "plan_neurons",
    "plan_weights",
    "prune_layers",
    "prune_neurons",
    "prune_neurons_iteratively",
    "prune_reconstructing",
    "prune_weights",
    "prune_weights_iteratively",
    "reconstruct_weights",
    "scan_sensitivity",
    "set_signed_constants",
    "to_semi_structured",
    "train_supermask",
]
