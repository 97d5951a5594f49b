"""Writes README.md from contest.json (and large.json where it exists)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

HEAD = """# Coding: bytes at equal error

`contest.py` runs NNCodec 2.1.3 and featherweight in turns on one thread of the same machine and says how; `report.py` wrote
this page. The error is ‖ŵ - w‖ / ‖w‖ over the weights, that is all tensors of two or more axes. Speeds are millions of numbers
for each CPU second, quantization included. "Others" are biases and norms: NNCodec keeps them nearly exactly, we to about a
thirtieth of the weights' error; so their bytes, and those of the weights alone, stand apart.

Ten times NNCodec's speed was the aim, and is not reached. NNCodec is C++ throughout. Of ours, the search for each symbol in its
table is native (the constriction library), and takes 15 to 20 ns, half of all decoding: with that alone, fifty million weights
a second would be the limit. The rest is numpy, and what small tensors take for themselves: EfficientNet has 197 vectors among
its 247 tensors. More would need native code for several interleaved stacks, and for the walk along the trellis.
"""


def main() -> None:
    record = json.loads((HERE / "contest.json").read_text())
    parts = [HEAD]
    for name, network in record["networks"].items():
        parts += [f"## {name}", "", f"{network['weights']:,} weights, {network['others']:,} others.", "", *table(network), ""]
        if "lossless_bytes" in network:
            parts += [f"Without any loss its tensors take {network['lossless_bytes']:,} bytes of ours.", ""]
    if (HERE / "large.json").exists():
        parts += large(json.loads((HERE / "large.json").read_text()))
    where = record["environment"]
    parts += [f"Measured on {where['processor']}, Python {where['python']}, torch {where['torch']}, one thread."]
    (HERE / "README.md").write_text("\n".join(parts) + "\n")


def table(network: dict[str, Any]) -> list[str]:
    """A row for each codec at each point."""
    rows = [
        "| error | codec | bytes | weights alone | others: error | encode, M/s | decode, M/s |",
        "| --: | :-- | --: | --: | --: | --: | --: |",
    ]
    count = network["weights"] + network["others"]
    for point in network["points"]:
        theirs, ours = point["theirs"], point["ours"]
        for label, side in ((f"NNCodec, qp {point['qp']}", theirs), ("featherweight", ours)):
            cells = [
                f"{side['relative_error']:.5f}",
                label,
                f"{side['bytes']:,}",
                f"{side['weights_bytes']:,}",
                f"{side['others_relative_error']:.1e}",
                *(f"{count / side[key] / 1e6:.1f}" for key in ("encode_s", "decode_s")),
            ]
            rows.append(f"| {' | '.join(cells)} |")
        saved, alone = (ours[key] / theirs[key] - 1 for key in ("bytes", "weights_bytes"))
        faster = (theirs[key] / ours[key] for key in ("encode_s", "decode_s"))
        rows.append(
            f"| | | **{saved:+.1%}** | **{alone:+.1%}** | | " + " | ".join(f"**× {each:.1f}**" for each in faster) + " |"
        )
    return rows


def large(record: dict[str, Any]) -> list[str]:
    """A state dict of which only one tensor is ever in memory."""
    tensor, start, peak = (round(record[key] / 2**20) for key in ("largest_bytes", "start_bytes", "peak_bytes"))
    own = record["seconds"] - record["of_it_drawing_seconds"]
    more = "" if record["weights"] >= 10**9 else " More tensors would take more time, not more memory."
    return [
        "## Tensors one at a time",
        "",
        f"{record['weights']:,} weights in tensors of {tensor} MiB, drawn, quantized and coded one at a time by `large.py`,",
        f"quantized twice, for the writer asks for each twice: {record['bytes']:,} bytes ({record['bits']:.2f} bits a weight)",
        f"at an error of {record['relative_error']:.3f}, in {own:.0f} s of processor time without the drawing",
        f"({record['weights'] / own / 1e6:.1f} M weights/s). The peak is {peak} MiB of memory,",
        f"of which {start} MiB were in use before it began.{more}",
        "",
    ]


if __name__ == "__main__":
    main()
