"""One network that spends what the moment allows, and really skips the rest.

A dynamic network is an `nn.Module` that can answer in several ways, and says so in the same words whatever they are, exits or
widths:

    choices()       the ways to answer, from the lightest to the full one
    cost(choice)    what a choice costs: MACs of a sample, and seconds where they were measured on this device (`Cost`)
    choose(limit)   the last of `choices()` that keeps a `Limit`

and `net(x, budget=Limit(seconds=2e-3))` answers by the choice that keeps it.
"""

from __future__ import annotations

from featherweight.dynamic.branches import HEADS, add_exits
from featherweight.dynamic.confidence import CONFIDENCES
from featherweight.dynamic.controller import Controller, Situation, limit_at
from featherweight.dynamic.cost import Cost, Limit, choose_within
from featherweight.dynamic.exit_files import export_exits, load_exits, save_exits
from featherweight.dynamic.exit_training import exit_loss, fit_heads
from featherweight.dynamic.exits import ExitNetwork
from featherweight.dynamic.policy import POLICIES, calibrate, record_exits
from featherweight.dynamic.sandwich import recalibrate, tune_widths
from featherweight.dynamic.slimming import find_shape
from featherweight.dynamic.width_files import export_widths, load_slimmable, save_slimmable
from featherweight.dynamic.widths import SlimmableNetwork, make_slimmable

__all__ = [
    "CONFIDENCES",
    "HEADS",
    "POLICIES",
    "Controller",
    "Cost",
    "ExitNetwork",
    "Limit",
    "Situation",
    "SlimmableNetwork",
    "add_exits",
    "calibrate",
    "choose_within",
    "exit_loss",
    "export_exits",
    "export_widths",
    "find_shape",
    "fit_heads",
    "limit_at",
    "load_exits",
    "load_slimmable",
    "make_slimmable",
    "recalibrate",
    "record_exits",
    "save_exits",
    "save_slimmable",
    "tune_widths",
]
