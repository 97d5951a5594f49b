"""What it costs to be dynamic and not to use it: everything switched to full, against the plain network, in turns.

Of a small residual network for images of 28x28 pixels (2.4 million MACs), with weights as they start:

    module     the network as its author wrote it
    captured   the same as a captured program
    exits      with two exits, all thresholds infinite
    widths     slimmable, at its full width
    both       with exits, at its full width, straight to the last exit
    narrow     slimmable, at half its width, against `extracted`: a plain network of that width

Milliseconds of a batch in PyTorch on one thread, without gradients, in turns of 20 ms: the lower quartile, for what else the
machine does only makes runs longer.

    python benchmarks/dynamic/overhead.py [--seconds 4]
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from exits import residual

from featherweight.dynamic import add_exits, add_widths, make_slimmable
from featherweight.graph.capture import to_module
from featherweight.measuring import environment
from featherweight.measuring.latency import time_in_turns

RESULT = Path(__file__).with_suffix(".json")
RATIOS = (
    ("captured", "module"),
    ("exits", "module"),
    ("widths", "module"),
    ("both", "module"),
    ("exits", "captured"),
    ("widths", "captured"),
    ("both", "captured"),
    ("narrow", "extracted"),
)


def main() -> None:
    """Measures, prints, and writes the result beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each network and size of batch")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain, example = residual().eval(), torch.randn(64, 1, 28, 28)
    exits = add_exits(plain, example, at=["1", "2"])
    slimmable = make_slimmable(plain, example, widths=(0.5, 1.0))
    nets = {
        "module": plain,
        "captured": to_module(plain, example).eval(),
        "exits": exits,
        "widths": slimmable,
        "both": add_widths(exits, widths=(0.5, 1.0)),
        "narrow": slimmable.at_width(0.5),
        "extracted": slimmable.extract(0.5),
    }
    found: dict[str, Any] = {}
    for batch in (1, 64):
        with torch.no_grad():
            times = time_in_turns([partial(net.eval(), example[:batch]) for net in nets.values()], seconds)
        usual = {name: 1e3 * statistics.quantiles(own, n=4)[0] for name, own in zip(nets, times, strict=True)}
        ratios = {f"{one} over {other}": round(usual[one] / usual[other], 3) for one, other in RATIOS}
        found[f"batch {batch}"] = {"milliseconds": {name: round(value, 4) for name, value in usual.items()}, **ratios}
        print(json.dumps(found[f"batch {batch}"], indent=1), flush=True)
    RESULT.write_text(json.dumps({"seconds": seconds, **found, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
