"""One network that spends what the moment allows, and really skips the rest.

A dynamic network is an `nn.Module` that can answer in several ways, and says so in the same words whatever they are, exits,
widths or gates:

    choices()       the ways to answer, from the lightest to the full one
    cost(choice)    what a choice costs: MACs of a sample, and seconds where they were measured on this device (`Cost`)
    choose(limit)   the last of `choices()` that keeps a `Limit`

and `net(x, budget=Limit(seconds=2e-3))` answers by the choice that keeps it.
"""

from __future__ import annotations

from featherweight.dynamic.branches import HEADS, add_exits
from featherweight.dynamic.combined import SlimmableExitNetwork, add_widths
from featherweight.dynamic.combined_files import export_combined
from featherweight.dynamic.confidence import CONFIDENCES
from featherweight.dynamic.controller import Controller, Situation, limit_at
from featherweight.dynamic.cost import Cost, Limit, choose_within
from featherweight.dynamic.effort import calibrate_effort
from featherweight.dynamic.effort_files import export_skips
from featherweight.dynamic.exit_files import export_exits
from featherweight.dynamic.exit_training import exit_loss, fit_heads, learn_confidence
from featherweight.dynamic.exits import ExitNetwork
from featherweight.dynamic.files import load_dynamic, save_dynamic
from featherweight.dynamic.gates import add_gates, add_policy
from featherweight.dynamic.gating import GATINGS
from featherweight.dynamic.policy import POLICIES, calibrate, record_exits
from featherweight.dynamic.routing import RoutedNetwork, add_router, tune_router
from featherweight.dynamic.sandwich import Sandwich, recalibrate, tune_widths
from featherweight.dynamic.skip_training import REWARDS, Reinforcement, cool, reinforce, skip_loss
from featherweight.dynamic.skips import SkipNetwork
from featherweight.dynamic.slimming import find_shape
from featherweight.dynamic.width_files import export_widths
from featherweight.dynamic.widths import SlimmableNetwork, make_slimmable

__all__ = [
    "CONFIDENCES",
    "GATINGS",
    "HEADS",
    "POLICIES",
    "REWARDS",
    "Controller",
    "Cost",
    "ExitNetwork",
    "Limit",
    "Reinforcement",
    "RoutedNetwork",
    "Sandwich",
    "Situation",
    "SkipNetwork",
    "SlimmableExitNetwork",
    "SlimmableNetwork",
    "add_exits",
    "add_gates",
    "add_policy",
    "add_router",
    "add_widths",
    "calibrate",
    "calibrate_effort",
    "choose_within",
    "cool",
    "exit_loss",
    "export_combined",
    "export_exits",
    "export_skips",
    "export_widths",
    "find_shape",
    "fit_heads",
    "learn_confidence",
    "limit_at",
    "load_dynamic",
    "make_slimmable",
    "recalibrate",
    "record_exits",
    "reinforce",
    "save_dynamic",
    "skip_loss",
    "tune_router",
    "tune_widths",
]
