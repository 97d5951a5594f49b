"""The tables of the experiment `dynamic`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featherweight.experiments.dynamic_clock import BATCHES
from featherweight.experiments.dynamic_networks import KINDS, WIDTHS
from featherweight.experiments.experiment import Outcome
from featherweight.experiments.summary import markdown_table, mean, select, spread

__all__ = ["PICTURES", "RUNTIMES", "by_training", "clocks", "picture_of", "tables", "title_of"]

RUNTIMES = ("torch", "onnx")

PICTURES = {"sorted": "first_and_last.png", "steered": "controller.png"}
"""Pictures beside the plots, by what marks their cells."""

_ACCURACY = "Test accuracy in %, mean ± standard deviation over seeds."


def tables(outcomes: Sequence[Outcome]) -> str:
    """All tables, in Markdown.

    Args:
        outcomes: of all cells.

    Returns:
        Text that begins with a table.
    """
    parts = []
    for number, (data, here) in enumerate(by_training(outcomes).items()):
        parts += [_clock_table(data, here), _exit_table(data, here), _width_table(data, here)]
        parts += [_sorted_text(data, here), _wave_text(data, here)]
        if number and clocks(here):
            parts.append(f"![accuracy and time on {data}]({picture_of(number)})")
    for key, file in PICTURES.items():
        if any(key in outcome.cell for outcome in outcomes):
            parts.append(f"![images that were {key}]({file})" if key == "sorted" else f"![{key} by a controller]({file})")
    return "\n\n".join(part for part in parts if part)


def picture_of(number: int) -> str:
    """The file of the plot of a training, the first of which is 0.

    Example:
        >>> picture_of(0), picture_of(1)
        ('plot.png', 'plot-1.png')
    """
    return f"plot-{number}.png" if number else "plot.png"


def by_training(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each data set, and of each way to train on it, by a name for tables.

    Example:
        >>> cells = [{"data": "mnist", "samples": 9, "epochs": epochs} for epochs in (1, 2, 1)]
        >>> [(name, len(those)) for name, those in by_training([Outcome(cell, {}, 0.0) for cell in cells]).items()]
        [('mnist', 2), ('mnist, 9 images, 2 epochs', 1)]
    """
    names: dict[tuple[Any, ...], str] = {}
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        training = data, samples, epochs = tuple(outcome.cell.get(key) for key in ("data", "samples", "epochs"))
        if training not in names:
            names[training] = f"{data}, {samples:,} images, {epochs} epochs" if data in names.values() else str(data)
        found.setdefault(names[training], []).append(outcome)
    return found


def clocks(outcomes: Sequence[Outcome]) -> dict[str, list[Mapping[str, Any]]]:
    """What was measured of each way to answer, a mapping for each seed, by name.

    Args:
        outcomes: of one data set.

    Returns:
        Test accuracy in %, MACs and milliseconds; the ratio to the static network besides, as "times torch, 1" and so on.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for outcome in outcomes:
        if "timed" not in outcome.cell:
            continue
        for name, measured in outcome.result.items():
            ratios = {
                f"times {key}": outcome.result["plain"][key] / measured[key]
                for runtime in RUNTIMES
                for key in (f"{runtime}, {batch}" for batch in BATCHES)
                if key in measured
            }
            found.setdefault(name, []).append({**measured, **ratios})
    return found


def title_of(name: str) -> str:
    """What a table calls a way to answer, "kind" or "kind@point".

    Example:
        >>> title_of("joint@0.2 points less"), title_of("plain")
        ('exits: 0.2 points less', 'plain')
    """
    kind, _, point = name.partition("@")
    title = KINDS[kind].title if kind in KINDS else "plain, its author's module"
    return f"{title}: {point}" if point else title


def _clock_table(data: str, outcomes: Sequence[Outcome]) -> str:
    found = clocks(outcomes)
    if not found:
        return ""
    keys = [f"{runtime}, {batch}" for runtime in RUNTIMES for batch in BATCHES]
    rows = []
    for name, seeds in found.items():
        macs, test = mean([one["macs"] for one in seeds]), spread([one["test"] for one in seeds])
        rows.append([title_of(name), f"{macs / 1e6:.2f}", test, *(_time(seeds, key) for key in keys)])
    header = [data, "million MACs", "accuracy", *(key.replace("torch", "PyTorch").replace("onnx", "ONNX") for key in keys)]
    note = (
        f"{_ACCURACY} Mean milliseconds of a sample in batches of 1 and of 64, and in brackets how many times faster than the "
        "plain network, captured in PyTorch, one session in ONNX Runtime."
    )
    return markdown_table(header, rows) + f"\n\n{note}"


def _time(seeds: Sequence[Mapping[str, Any]], key: str) -> str:
    if key not in seeds[0]:
        return "–"
    return f"{mean([one[key] for one in seeds]):.3f} ({spread([one[f'times {key}'] for one in seeds])} ×)"


def _exit_table(data: str, outcomes: Sequence[Outcome]) -> str:
    rows = []
    for kind in ("plain", "frozen", "joint", "distilled", "exits", "combined", "msdnet"):
        seeds = [outcome.result["test"] for outcome in select(outcomes, net=kind)]
        if seeds:
            columns = [spread(list(values)) for values in zip(*seeds, strict=True)]
            rows.append([KINDS[kind].title, *([""] * (4 - len(columns))), *columns])
    if len(rows) < 2:
        return ""
    header = [f"{data}, all leave at exit", "1", "2", "3", "the last"]
    return markdown_table(header, rows) + f"\n\n{_ACCURACY}"


def _width_table(data: str, outcomes: Sequence[Outcome]) -> str:
    alone = [*(f"narrow-{width}" for width in WIDTHS[:-1]), "plain"]
    rows = []
    own = [[outcome.result["test"][-1] for outcome in select(outcomes, net=kind)] for kind in alone]
    rows.append(["trained alone", *(spread(tests) if tests else "–" for tests in own)])
    for kind in ("slimmable", "shared", "recalibrated"):
        seeds = [outcome.result["test"] for outcome in select(outcomes, net=kind)]
        if seeds:
            rows.append([KINDS[kind].title, *(spread(list(values)) for values in zip(*seeds, strict=True))])
    if len(rows) < 2:
        return ""
    return markdown_table([f"{data}, at width", *map(str, WIDTHS)], rows) + f"\n\n{_ACCURACY}"


def _sorted_text(data: str, outcomes: Sequence[Outcome]) -> str:
    """How many samples leave where, and how many of them are right."""
    parts = []
    for outcome in outcomes:
        if "sorted" in outcome.cell:
            found = zip(outcome.result["shares"], outcome.result["accuracy"], strict=True)
            parts += [f"{100 * share:.1f} %" + (f" ({right:.1f} % right)" if share else "") for share, right in found]
    return f"Of the test images of {data}, there leave at exits 1, 2, …: {', '.join(parts)}." if parts else ""


def _wave_text(data: str, outcomes: Sequence[Outcome]) -> str:
    """What the controller did, in a sentence for each network it steered."""
    parts = []
    for outcome in outcomes:
        if "steered" not in outcome.cell:
            continue
        found = outcome.result
        low = min(found["limit"])
        switches = sum(a != b for a, b in zip(found["exit"], found["exit"][1:], strict=False))
        jumps = sum(a != b for a, b in zip(found["limit"], found["limit"][1:], strict=False))
        kept = [ms <= limit for ms, limit in zip(found["milliseconds"], found["limit"], strict=True)]
        parts.append(
            f"On {data} the controller switched {_times(switches)} in {len(kept)} images while the budget jumped "
            f"{_times(jumps)}; {100 * mean(kept):.1f} % of the answers kept it. "
            + " ".join(
                f"{name} budget: {mean(_of(found, 'milliseconds', low, tight)):.3f} ms of "
                f"{mean(_of(found, 'limit', low, tight)):.3f}, {100 * mean(_of(found, 'right', low, tight)):.1f} % right."
                for name, tight in (("Large", False), ("Small", True))
            )
        )
    return "\n\n".join(parts)


def _of(found: Mapping[str, Any], key: str, low: float, tight: bool) -> list[float]:
    return [value for value, limit in zip(found[key], found["limit"], strict=True) if (limit == low) == tight]


def _times(count: int) -> str:
    return f"{count} time{'s' * (count != 1)}"
