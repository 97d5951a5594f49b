"""A small encoder of texts loses heads, neurons and half of its layers, learns from what it was, and runs in 8 bits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import normalize

import featherweight as fw
from featherweight.distillation import distill
from featherweight.nets import text_encoder
from featherweight.pruning import prune_layers, prune_neurons
from featherweight.quantization import quantize_uniform
from featherweight.training.loop import Tuning


def main() -> None:
    """Writes whole.fw and small.fw into the working directory."""
    torch.manual_seed(0)
    encoder = text_encoder(vocabulary=200, length=12, channels=32, depth=4, heads=4).eval()
    *texts, new = (torch.randint(1, 200, (32, 12)) for _ in range(11))  # tokens; a pretrained encoder would get real ones
    example, known = texts[0][:2], [(batch, torch.zeros(len(batch))) for batch in texts]

    small = prune_layers(encoder, example, sparsity=0.5, criterion="influence", data=known)
    small = prune_neurons(small, example, sparsity=0.25, allocation="uniform", granularity="head", exclude=["positions*"])
    small = distill(small, encoder, texts, hard_weight=0, target="logits", tuning=Tuning(epochs=8, learning_rate=3e-3))
    small = quantize_uniform(small, example, activation_bits=8, calibrate=known).eval()

    sizes = [fw.save(net, f"{name}.fw", example=example) for name, net in (("whole", encoder), ("small", small))]
    with torch.no_grad():
        cosines = normalize(fw.load(Path("small.fw"))(new)) @ normalize(encoder(new)).T
    told = int((cosines.argmax(1) == torch.arange(32)).sum())
    print(f"{sizes[0] / sizes[1]:.1f} times smaller; of 32 new texts, the vectors of {told} are nearest to their own")


if __name__ == "__main__":
    main()
