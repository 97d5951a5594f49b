"""Ranks by the clock: the network with the least error that is as fast as it must be."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from torch import nn

from featherweight.errors import RequestError, check
from featherweight.factorization.factorize import plan_factors
from featherweight.graph.capture import Example
from featherweight.graph.constraint import duplicate
from featherweight.measuring.latency import compare_latency
from featherweight.training.loaders import Batch

__all__ = ["factorize_within"]

_log = logging.getLogger(__name__)


def factorize_within(
    model: nn.Module,
    example: Example,
    *,
    latency_s: float,
    budgets: Sequence[float] = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1),
    method: str = "svd",
    data: Iterable[Batch] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    threads: int = 1,
) -> nn.Module:
    """Factors layers so far that ONNX Runtime runs a sample in time, and no further.

    A candidate for each of `budgets` is exported and timed in turns with the network as it is; the one with the most weights
    that is fast enough is taken. One that is slower than the network as it is never is, however few weights it has.

    Args:
        model: any module that can be captured and exported; it is not changed.
        example: a batch of inputs.
        latency_s: the median time of one sample in seconds, above 0.
        budgets: shares of the weights to try, decreasing, each in (0, 1); see `plan_factors`.
        method: a name in `METHODS`.
        data: see `plan_factors`.
        include: see `plan_factors`.
        exclude: see `plan_factors`.
        threads: at least 1.

    Returns:
        The network with thin layers; a copy of the network as it is where that is fast enough already.

    Raises:
        RequestError: no candidate is fast enough (the message has the fastest's time), or an option is out of range.
        CaptureError, FeatherweightError: the network cannot be captured or exported.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> type(factorize_within(net, torch.zeros(1, 64), latency_s=1.0)) is nn.Sequential
        True
    """
    check("latency_s", latency_s, "above 0", latency_s > 0)
    check("budgets", tuple(budgets), "at least one share", len(budgets) > 0)
    if compare_latency([model], example, threads=threads)[0].median_s <= latency_s:
        return duplicate(model)
    candidates = [model]
    for budget in budgets:
        plan = plan_factors(model, example, budget=budget, method=method, data=data, include=include, exclude=exclude)
        candidates.append(plan.apply(model, data=data))
    times = [latency.median_s for latency in compare_latency(candidates, example, threads=threads)]
    for budget, candidate, seconds in zip(budgets, candidates[1:], times[1:], strict=True):
        _log.info("%.0f %% of the weights: %.3g ms; %.3g ms as it is", 100 * budget, 1e3 * seconds, 1e3 * times[0])
        if seconds <= latency_s and seconds < times[0]:
            return candidate
    raise RequestError(
        f"no factorization by {method!r} runs in {1e3 * latency_s:.3g} ms: the network takes {1e3 * times[0]:.3g} ms, the "
        f"fastest candidate {1e3 * min(times[1:]):.3g} ms; prune it, or allow more time"
    )
