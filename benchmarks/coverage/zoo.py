"""The networks of the coverage measurement: which they are, how each is built, and the smallest images it takes.

    python benchmarks/coverage/zoo.py       looks for the smallest variant and input of each again, and writes models.json

torchvision's 80 classification networks, and of each of timm's modules the variant with the fewest parameters (`test_*` aside).
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["LIST", "Entry", "build", "entries", "example", "import_torchvision", "loss_of"]

LIST = Path(__file__).with_name("models.json")
SIZES = (96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512, 768, 1024)


@dataclass(frozen=True)
class Entry:
    """A line of models.json. `family` is timm's module; `size` the images' height and width in pixels."""

    source: str
    name: str
    family: str
    parameters: int
    size: int


def entries(source: str = "all") -> list[Entry]:
    """The networks of "torchvision", "timm" or "all", as models.json has them."""
    every = [Entry(**line) for line in json.loads(LIST.read_text(encoding="utf-8"))]
    return [entry for entry in every if source in ("all", entry.source)]


def import_torchvision() -> Any:
    """Imports torchvision where its compiled operators do not load: a build for another torch, or none for this processor.

    Its Python then stops at operators that do not exist. Their schemas suffice: no classification network calls one.
    """
    if "torchvision" not in sys.modules:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold)", "qnms(Tensor d, Tensor s, float iou_threshold)"):
            library.define(f"{schema} -> Tensor")
        _KEPT.append(library)  # its definitions go when it does
    import torchvision

    return torchvision


_KEPT: list[torch.library.Library] = []


def build(source: str, name: str, *, fused: bool = True, seed: int = 0) -> nn.Module:
    """The network in eval mode, every weight redrawn; auxiliary classifiers, which only run in training, are left out.

    Without `fused`, timm's attention layers multiply, take the softmax and multiply, instead of calling one operation.
    """
    torchvision = import_torchvision()
    import timm

    torch.manual_seed(seed)
    timm.layers.set_fused_attn(fused)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if source == "timm":
            model = timm.create_model(name, pretrained=False)
        else:
            bare = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
            model = torchvision.models.get_model(name, weights=None, **bare)
    redraw(model, seed=seed)
    return model.eval()


def redraw(model: nn.Module, *, seed: int) -> None:
    """Draws weights anew, in place, so that nothing hides: no zero gamma, no layer scale of 1e-6, no trivial batch statistics.

    Matrices and kernels get variance 1 / fan-in; gains and other constants are spread by half; what is next to zero is not.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, std: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator) * std

    def spread(like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator) + 0.5

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            leaf = name.rpartition(".")[2]
            first = tensor.flatten()[0]
            if leaf.endswith("weight") and tensor.dim() > 1:
                tensor.copy_(normal(tensor, (tensor.numel() / len(tensor)) ** -0.5))
            elif "bias" in leaf and tensor.dim() == 1:
                tensor.copy_(normal(tensor, 0.1))
            elif bool((tensor == first).all()) and (tensor.dim() < 2 or float(first) != 0):
                tensor.copy_(spread(tensor) * (first if abs(float(first)) > 0.1 else 1))
            elif tensor.numel() == 1 or float(tensor.std()) < 0.1:
                tensor.copy_(normal(tensor, 0.2))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(normal(buffer, 0.1))
            elif name.endswith("running_var"):
                buffer.copy_(spread(buffer))


def example(entry: Entry, *, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Random images, [batch, 3, size, size]."""
    return torch.randn(batch, 3, entry.size, entry.size, generator=torch.Generator().manual_seed(seed))


def loss_of(outputs: Any) -> torch.Tensor:
    """A number that depends on every output: their mean square."""
    squares = [o.square().mean() for o in pytree.tree_leaves(outputs) if isinstance(o, torch.Tensor) and o.is_floating_point()]
    return torch.stack(squares).sum()


def find_entries() -> Iterator[Entry]:
    """Builds everything once: minutes."""
    torchvision = import_torchvision()
    import timm

    for name in torchvision.models.list_models(module=torchvision.models):
        yield _entry("torchvision", name, torchvision.models.get_model_builder(name).__module__.rpartition(".")[2])
    for family in timm.list_modules():
        counts = {name: _count(name) for name in timm.list_models(module=family) if not name.startswith("test_")}
        if counts:
            yield _entry("timm", min(counts, key=lambda name: (counts[name], name)), family)


def _count(name: str) -> int:
    import timm

    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except (RuntimeError, NotImplementedError):  # it reads a value while it is built
        model = timm.create_model(name, pretrained=False)
    return sum(parameter.numel() for parameter in model.parameters())


def _entry(source: str, name: str, family: str) -> Entry:
    model = build(source, name)
    own = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for size in sorted({*SIZES, own}):
        entry = Entry(source, name, family, parameters, size)
        try:
            with torch.no_grad():
                model.eval()(example(entry, batch=3))
            loss_of(model.train()(example(entry))).backward()
            return entry
        except (RuntimeError, AssertionError, ValueError, IndexError):  # too small, or not the one size it takes
            continue
    raise SystemExit(f"{name} takes images of none of the sizes {SIZES}")


if __name__ == "__main__":
    logging.disable()
    warnings.simplefilter("ignore")
    lines = []
    for found in find_entries():
        print(found, flush=True)
        lines.append(json.dumps(asdict(found)))
    LIST.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
