"""featherweight makes trained PyTorch networks small, and measures what was gained.

    compress    the lightest network that meets a budget
    save, load  a network as one .fw file, and back
    measure     bytes, parameters, MACs, latency, accuracy

The families of methods are modules: `featherweight.pruning`, `featherweight.quantization`, … Each is imported when it is first
used, so `import featherweight` alone loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featherweight import (
        distillation,
        dynamic,
        errors,
        exporting,
        factorization,
        graph,
        measuring,
        nets,
        packaging,
        pruning,
        quantization,
        reporting,
        search,
        training,
    )
    from featherweight.measuring import Report, measure
    from featherweight.packaging import load, save
    from featherweight.search.budget import Budget
    from featherweight.search.compress import compress

__all__ = [
    "Budget",
    "Report",
    "compress",
    "distillation",
    "dynamic",
    "errors",
    "exporting",
    "factorization",
    "graph",
    "load",
    "measure",
    "measuring",
    "nets",
    "packaging",
    "pruning",
    "quantization",
    "reporting",
    "save",
    "search",
    "training",
]

__version__ = "0.1.0"

# Where each name of the facade that is no module lives.
_HOMES = {
    "Budget": "featherweight.search.budget",
    "Report": "featherweight.measuring",
    "compress": "featherweight.search.compress",
    "load": "featherweight.packaging",
    "measure": "featherweight.measuring",
    "save": "featherweight.packaging",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
