"""A search, and experiments, without their slowest part, the export to ONNX, for tests that are about something else."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest
from torch import nn

from featherweight.experiments import blocks, compact_nets, depthwise_separable
from featherweight.graph.constraint import fold
from featherweight.measuring.latency import Latency
from featherweight.training import Data, load_data


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is a microsecond per parameter, and nothing is exported."""

    def latencies(models: Sequence[nn.Module], example: object, **options: object) -> list[Latency]:
        return [Latency(sum(p.numel() for p in fold(model).parameters()) * 1e-6, 0.0, 7, 1, 1, "none") for model in models]

    module = importlib.import_module("featherweight.search.compress")  # of that name there is a function, too
    for timing in (module, blocks, compact_nets, depthwise_separable):
        monkeypatch.setattr(timing, "compare_latency", latencies)
    monkeypatch.setattr(module, "translate", lambda model, example: b"")


@pytest.fixture(scope="session")
def digits() -> Data:
    """Few batches, so that an epoch is quick."""
    return load_data("digits", batch_size=500)
