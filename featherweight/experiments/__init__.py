"""What papers claim, as experiments that anyone can run again; the command is `featherweight reproduce`."""

from __future__ import annotations

from collections.abc import Mapping

from featherweight.experiments import (
    assistants,
    binary,
    blocks,
    compact_nets,
    deconstructing,
    deep_compression,
    depthwise_separable,
    dynamic,
    ensemble,
    hinton_mnist,
    lottery_tickets,
    rethinking,
    storage_record,
    supermasks,
    temperature,
    unseen_digit,
    weight_agnostic,
    weights_or_neurons,
    why_prune,
)
from featherweight.experiments.experiment import Cell, Experiment, Lab, Outcome
from featherweight.experiments.reproduce import reproduce

__all__ = ["EXPERIMENTS", "Cell", "Experiment", "Lab", "Outcome", "reproduce"]

EXPERIMENTS: Mapping[str, Experiment] = {
    "deep-compression": deep_compression.EXPERIMENT,
    "lottery-tickets": lottery_tickets.EXPERIMENT,
    "deconstructing": deconstructing.EXPERIMENT,
    "supermasks": supermasks.EXPERIMENT,
    "weight-agnostic": weight_agnostic.EXPERIMENT,
    "rethinking": rethinking.EXPERIMENT,
    "why-prune": why_prune.EXPERIMENT,
    "weights-or-neurons": weights_or_neurons.EXPERIMENT,
    "binary": binary.EXPERIMENT,
    "storage-record": storage_record.EXPERIMENT,
    "hinton-mnist": hinton_mnist.EXPERIMENT,
    "unseen-digit": unseen_digit.EXPERIMENT,
    "temperature": temperature.EXPERIMENT,
    "ensemble": ensemble.EXPERIMENT,
    "assistants": assistants.EXPERIMENT,
    "blocks": blocks.EXPERIMENT,
    "depthwise-separable": depthwise_separable.EXPERIMENT,
    "compact-nets": compact_nets.EXPERIMENT,
    "dynamic": dynamic.EXPERIMENT,
}
"""Experiments by name."""
