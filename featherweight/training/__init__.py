"""Training: data by name, one loop, and weights from files."""

from __future__ import annotations

from featherweight.training.data import Data, Loader, TensorLoader, check_fits, load_data
from featherweight.training.loop import Tuning, evaluate, fit, predict
from featherweight.training.progress import Progress, silent
from featherweight.training.weights import check_finite, load_weights

__all__ = [
    "Data",
    "Loader",
    "Progress",
    "TensorLoader",
    "Tuning",
    "check_finite",
    "check_fits",
    "evaluate",
    "fit",
    "load_data",
    "load_weights",
    "predict",
    "silent",
]
