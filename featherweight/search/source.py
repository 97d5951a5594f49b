"""Where the network comes from: a net of ours, the user's own function, an exported program, or a .fw file."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from featherweight.errors import RequestError, look_up
from featherweight.graph.capture import from_exported
from featherweight.graph.program import ProgramModule
from featherweight.nets import NETS
from featherweight.packaging import load
from featherweight.training import load_weights

__all__ = ["has_weights", "load_model"]


def has_weights(spec: str) -> bool:
    """Whether a network of this kind always comes with its weights: exported programs and .fw files do.

    Args:
        spec: what `load_model` takes.

    Returns:
        True for a .pt2 or .fw file.

    Example:
        >>> has_weights("net.pt2"), has_weights("zoo:lenet5")
        (True, False)
    """
    return spec.endswith((".pt2", ".fw"))


def load_model(
    spec: str,
    *,
    weights: str | Path | None = None,
    input_shape: tuple[int, ...] = (1, 28, 28),
    classes: int = 10,
    seed: int = 0,
) -> nn.Module:
    """Makes the network a request names.

    Args:
        spec: "zoo:NAME" (one of `nets.NETS`, made for these inputs and classes), "package.module:function" (called without
            arguments, returns a module), or the path of a .pt2 or a .fw file.
        weights: a state dict to load (.safetensors, .pt, .pth).
        input_shape: of one sample, for a net of the zoo.
        classes: for a net of the zoo.
        seed: of the initial weights.

    Returns:
        The module, in eval mode.

    Raises:
        RequestError: there is no such network, or it does not take these inputs.
        WeightsError: the weights do not fit.
        CaptureError: the exported program cannot be handled.

    Example:
        >>> type(load_model("zoo:lenet5")).__name__
        'LeNet5'
    """
    torch.manual_seed(seed)
    if spec.startswith("zoo:"):
        model = look_up(NETS, spec.removeprefix("zoo:"), "a net of the zoo")(input_shape=input_shape, classes=classes)
    elif spec.endswith(".fw"):
        model = load(spec)
    elif spec.endswith(".pt2"):
        model = _exported(Path(spec))
    elif ":" in spec:
        model = _users_own(spec)
    else:
        raise RequestError(
            f"a model must be zoo:NAME ({', '.join(NETS)}), package.module:function, or a .pt2 or .fw file, got {spec!r}"
        )
    if weights is not None:
        load_weights(model, Path(weights))
    return model.eval()


def _exported(path: Path) -> ProgramModule:
    try:
        exported = torch.export.load(path)
    except Exception as error:
        raise RequestError(f"a .pt2 model must be a file that torch.export.save wrote, but {path} is not: {error}") from error
    program = from_exported(exported)
    values = {**exported.constants, **exported.state_dict}
    return ProgramModule(program, {spec.name: values[spec.name].detach().clone() for spec in program.tensors})


def _users_own(spec: str) -> nn.Module:
    module_name, _, function_name = spec.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        model = getattr(importlib.import_module(module_name), function_name)()
    except Exception as error:
        raise RequestError(
            f"the model {spec!r} must be a function without arguments that can be imported and called: {error!r}"
        ) from error
    if not isinstance(model, nn.Module):
        raise RequestError(f"the model {spec!r} must return a torch.nn.Module, got {type(model).__name__}")
    return model
