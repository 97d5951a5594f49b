"""Where a measurement was taken, without anything that names the machine or its owner."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from featherweight import __version__

__all__ = ["environment"]

_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime")


def environment() -> dict[str, Any]:
    """The versions and the processor behind a measurement, to be stored beside it. Holds no path and no host name.

    Returns:
        The versions of Python and of the packages that matter, the operating system, the
        machine's architecture, the processor's name as far as it can be found out, its number of logical cores, and torch's
        number of threads.

    Example:
        >>> environment()["torch"] == torch.__version__
        True
    """
    return {
        "python": platform.python_version(),
        "featherweight": __version__,
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def _processor() -> str | None:
    """The processor's model name: Linux tells it in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or None)
