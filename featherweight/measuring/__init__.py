"""Measurements: bytes of a file, counted tensors, time on a clock, accuracy on held-out data."""

from featherweight.measuring.environment import environment
from featherweight.measuring.latency import Latency, compare_latency, measure_latency, speed_up
from featherweight.measuring.report import Report, measure
from featherweight.measuring.size import count_nonzero, count_parameters, packed_bytes

__all__ = [
    "Latency",
    "Report",
    "compare_latency",
    "count_nonzero",
    "count_parameters",
    "environment",
    "measure",
    "measure_latency",
    "packed_bytes",
    "speed_up",
]
