"""How fast int8 is: our quantized networks in ONNX Runtime beside the same in floats, and beside its own quantization of them.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/quantized/speed.py [--seconds 20] [name …]

One thread, batch 1, random weights and random inputs: time does not depend on them. The sessions take turns, four timed runs
each after one that is not timed; a ratio is taken within each round, so that what else the machine does falls on all alike.
Times are processor time. ONNX Runtime's `quantize_static` (QDQ, per channel, after its own pre-processing) runs with signed
activations, its default, and with unsigned ones. Writes `speed.json` and `speed.md` beside this file; what they hold of other
networks stays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.coverage.zoo import build
from featherweight.exporting.onnx import open_session, translate
from featherweight.measuring import environment
from featherweight.nets import NETS
from featherweight.quantization.uniform import UniformOptions, quantize_uniform

RESULTS = Path(__file__).with_name("speed.json")
TABLE = Path(__file__).with_name("speed.md")
PHOTOS = ("resnet50", "mobilenet_v2", "squeezenet1_1", "mobilenet_v3_small")  # torchvision's, on 224 × 224 pixels
RIVALS = ("resnet50", "mobilenet_v2")
RUNS_A_TURN = 4


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Each network: how to build it, and the shape of its input."""
    rows: dict[str, Any] = {name: (lambda name=name: build("torchvision", name), (3, 224, 224)) for name in PHOTOS}
    for name, make in NETS.items():
        if "binary" not in name and "xnor" not in name:
            rows[name] = (lambda make=make: make(input_shape=(1, 28, 28), classes=10), (1, 28, 28))
    return rows


def quantize_theirs(content: bytes, shape: tuple[int, ...], signed: bool) -> bytes:
    """What ONNX Runtime's own static quantization makes of a network."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.batches: Iterator[dict[str, np.ndarray]] = iter([{name: batch.numpy()} for batch in images(shape)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, result = (Path(folder, name) for name in ("source.onnx", "prepared.onnx", "result.onnx"))
        source.write_bytes(content)
        quant_pre_process(source, prepared)
        name = open_session(content).get_inputs()[0].name
        kind = QuantType.QInt8 if signed else QuantType.QUInt8
        options = {"quant_format": QuantFormat.QDQ, "per_channel": True, "activation_type": kind}
        quantize_static(prepared, result, Reader(name), **options)
        return result.read_bytes()


def images(shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Random batches to calibrate on."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, *shape, generator=generator) for _ in range(4)]


def in_turns(contents: dict[str, bytes], shape: tuple[int, ...], seconds: float) -> dict[str, list[float]]:
    """For each network the median time of each of its turns, in seconds."""
    sessions = {name: open_session(content) for name, content in contents.items()}
    feeds = {s.get_inputs()[0].name: images(shape)[0][:1].numpy() for s in sessions.values()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(times["float"]) < 7:
        for name, session in sessions.items():
            session.run(None, feeds)
            runs = []
            for _ in range(RUNS_A_TURN):
                start = time.process_time()
                session.run(None, feeds)
                runs.append(time.process_time() - start)
            times[name].append(statistics.median(runs))
    return times


def measure(name: str, seconds: float) -> dict[str, Any]:
    """One network's row."""
    make, shape = networks()[name]
    torch.manual_seed(0)
    net = make().eval()
    example = images(shape)[0]
    batches = [(batch, torch.zeros(len(batch))) for batch in images(shape)]
    options = UniformOptions(ranges="minmax", activation_ranges="minmax")
    quantized = quantize_uniform(net, example, activation_bits=8, calibrate=batches, options=options)
    contents = {"float": translate(net, example), "ours": translate(quantized, example)}
    if name in RIVALS:
        contents |= {
            f"theirs {kind}": quantize_theirs(contents["float"], shape, kind == "signed") for kind in ("signed", "unsigned")
        }
    times = in_turns(contents, shape, seconds)
    row: dict[str, Any] = {"float_ms": 1e3 * statistics.median(times["float"]), "rounds": len(times["float"])}
    for kind in contents:
        ratios = [before / after for before, after in zip(times["float"], times[kind], strict=True)]
        lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        row[kind] = {"ratio": median, "lower": lower, "upper": upper, "bytes": len(contents[kind])}
    return row


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "| network | float ms | ours | ONNX Runtime, unsigned | signed | bytes float | bytes ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        cells = [
            f"{row[kind]['ratio']:.2f}× ({row[kind]['lower']:.2f} – {row[kind]['upper']:.2f})" if kind in row else ""
            for kind in ("ours", "theirs unsigned", "theirs signed")
        ]
        sizes = [f"{row[kind]['bytes']:,}" for kind in ("float", "ours")]
        lines.append(f"| {name} | {row['float_ms']:.3f} | {' | '.join([*cells, *sizes])} |")
    return "\n".join(lines)


def main() -> None:
    """Measures the networks named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(networks()))
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, for each network")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"networks": {}}
    for name in arguments.names:
        stored["networks"][name] = measure(name, arguments.seconds)
        stored["environment"] = environment()
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        print(table({name: stored["networks"][name]}), flush=True)
    heading = (
        "Times of the float network over times of the quantized one, median and quartiles over rounds; made by `speed.py`.\n"
    )
    TABLE.write_text(f"{heading}\n{table(stored['networks'])}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
