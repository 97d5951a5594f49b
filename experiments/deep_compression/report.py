"""Makes README.md's table, "theirs beside ours", and the picture of size against accuracy, from the runs in `results/`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from reproduce import PLAIN_BUDGET

from featherweight.measuring import Report
from featherweight.reporting.plots import Point, plot_size_accuracy
from featherweight.reporting.tables import before_after_markdown

HERE = Path(__file__).parent

# Han, Mao and Dally, "Deep Compression", ICLR 2016, table 1: KB and % error, before and after.
PAPER = {"lenet-300-100": (1070, 1.64, 27, 1.58), "lenet5": (1720, 0.80, 44, 0.74)}
TITLES = {"lenet-300-100": "LeNet-300-100", "lenet5": "LeNet-5 (Caffe)"}

TEXT = """# Deep Compression on MNIST

Han, Mao and Dally (ICLR 2016, table 1) beside featherweight: whole files, header and architecture included, 1 KB = 1000 bytes;
test error in % of 10 000 images, looked at once per run, after the search. Ours: mean ± standard deviation over seeds; the size
before is the uncompressed network's, packed losslessly. Every choice within a run was made on a tenth of the training set, held
out as validation data; how much validation accuracy a run may give up (`BUDGET` in `reproduce.py`) was set per net, after
trial runs whose test error was seen.

{table}

What differs from the paper: neurons are pruned before weights; biases are clustered too; training images are shifted by up to 1
pixel each way.{control} Each net's file comes from the seed with the best validation accuracy:

{files}

![size against accuracy](size_accuracy.svg)

The lines are the networks that each seed's search of LeNet-5 accepted, measured on validation data while it ran (harder than
the test data by some tenths of a point); the single marks are on test data.

Made by `reproduce.py` and `report.py` from `results/` (each run's steps, seeds, versions and seconds) with the recipes in the
`.toml` files.
"""


CONTROL = f""" The control, *plain*, is not shifted, and may give up {PLAIN_BUDGET} points of validation accuracy."""


def runs_of(net: str, *, plain: bool = False) -> list[dict[str, Any]]:
    """The runs of a net, by seed."""
    paths = sorted((HERE / "results").glob(f"{net}-plain-seed*.json" if plain else f"{net}-seed*.json"))
    return [json.loads(path.read_text()) for path in paths]


def files_of(net: str) -> list[Path]:
    """The packed networks of `runs_of`, in the same order."""
    return sorted((HERE / "results").glob(f"{net}-seed*.fw"))


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation, or the one value there is."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def row(net: str, runs: list[dict[str, Any]], label: str) -> str:
    """One line of ours."""
    error = {when: [100 * (1 - run[when]["accuracy"]) for run in runs] for when in ("before", "after")}
    size = {when: [run[when]["size_bytes"] / 1000 for run in runs] for when in ("before", "after")}
    ratio = statistics.mean(size["before"]) / statistics.mean(size["after"])
    speed = [run["before"]["latency_s"] / run["after"]["latency_s"] for run in runs]
    return (
        f"| {TITLES[net]} | {label} | {len(runs)} | {spread(size['before'], 0)} → **{spread(size['after'], 2)}** "
        f"| {ratio:.0f}× | {spread(error['before'], 2)} → **{spread(error['after'], 2)}** | {spread(speed, 1)}× |"
    )


def update_front_page() -> None:
    """Puts the table of the kept LeNet-5 into the project's README."""
    kept = (HERE / "lenet5.fw").read_bytes()
    run = next(run for run, file in zip(runs_of("lenet5"), files_of("lenet5"), strict=True) if file.read_bytes() == kept)
    table = before_after_markdown(Report(**run["before"]), Report(**run["after"]))
    page = HERE.parents[1] / "README.md"
    head, begin, rest = page.read_text().partition("<!-- result:begin")
    mark, _, rest = rest.partition("-->")
    _, end, tail = rest.partition("<!-- result:end -->")
    page.write_text(f"{head}{begin}{mark}-->\n{table.strip()}\n{end}{tail}")


def points_of(net: str) -> list[Point]:
    """The picture: each seed's accepted networks on validation data; its last one and the paper's on test data."""
    _, _, kilobytes, error = PAPER[net]
    points = [Point(kilobytes * 1000, 1 - error / 100, series="Han et al., test", reference=True)]
    for run in runs_of(net):
        accepted = [step for step in run["steps"] if step["accepted"]]
        series = f"seed {run['recipe']['seed']}, validation"
        points += [Point(step["size_bytes"], step["validation_accuracy"], series=series) for step in accepted]
        last = run["after"]
        points.append(Point(last["size_bytes"], last["accuracy"], series="featherweight, test", reference=True))
    return points


def main() -> None:
    """Writes README.md and the picture."""
    lines = ["| net | whose | seeds | KB | ratio | error, % | faster (1 thread) |", "|---|---|---|---|---|---|---|"]
    for net, (before_kb, before_error, after_kb, after_error) in PAPER.items():
        sizes, errors = f"{before_kb} → {after_kb}", f"{before_error:.2f} → {after_error:.2f}"
        lines.append(f"| {TITLES[net]} | Han et al. | 1 | {sizes} | {before_kb / after_kb:.0f}× | {errors} | – |")
        for plain, label in ((False, "featherweight"), (True, "featherweight, plain")):
            runs = runs_of(net, plain=plain)
            if runs:
                lines.append(row(net, runs, label))
    files = [f"- [`{net}.fw`]({net}.fw), {(HERE / f'{net}.fw').stat().st_size} bytes" for net in PAPER]
    control = CONTROL if any(runs_of(net, plain=True) for net in PAPER) else ""
    (HERE / "README.md").write_text(TEXT.format(table="\n".join(lines), files="\n".join(files), control=control))
    update_front_page()
    plot_size_accuracy(points_of("lenet5"), HERE / "size_accuracy.svg", title="LeNet-5 on MNIST: size against accuracy")


if __name__ == "__main__":
    main()
