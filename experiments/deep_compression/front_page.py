"""Puts the table of the best LeNet-5 into the project's README.md, from results.json."""

from __future__ import annotations

from pathlib import Path

from featherweight.experiments.deep_compression import best_run
from featherweight.experiments.reproduce import read_outcomes
from featherweight.measuring import Report
from featherweight.reporting.tables import before_after_markdown

HERE = Path(__file__).parent


def main() -> None:
    """Rewrites what is between the marks."""
    best = best_run(read_outcomes(HERE), "lenet5").result
    table = before_after_markdown(Report(**best["before"]), Report(**best["after"]))
    path = HERE.parents[1] / "README.md"
    head, begin, rest = path.read_text().partition("<!-- result:begin")
    mark, _, rest = rest.partition("-->")
    _, end, tail = rest.partition("<!-- result:end -->")
    path.write_text(f"{head}{begin}{mark}-->\n{table.strip()}\n{end}{tail}")


if __name__ == "__main__":
    main()
