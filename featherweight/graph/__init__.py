"""One picture of the model: capture, the op table, coupled axes, surgery, constraints and cost."""

from featherweight.graph.capture import capture, tensors_of, to_module
from featherweight.graph.constraint import Constraint, constrain, constrained, fold
from featherweight.graph.cost import count_macs
from featherweight.graph.groups import Coupling, Group, trace
from featherweight.graph.program import Program, ProgramModule
from featherweight.graph.surgery import Plan

__all__ = [
    "Constraint",
    "Coupling",
    "Group",
    "Plan",
    "Program",
    "ProgramModule",
    "capture",
    "constrain",
    "constrained",
    "count_macs",
    "fold",
    "tensors_of",
    "to_module",
    "trace",
]
