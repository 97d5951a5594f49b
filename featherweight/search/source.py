"""Where the network comes from: a net of ours, the user's own function, an exported program, or a .fw file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from featherweight.errors import CaptureError, RequestError, look_up
from featherweight.graph.exported import from_exported
from featherweight.graph.functions import resolve_op
from featherweight.graph.program import Node, ProgramModule
from featherweight.nets import NETS
from featherweight.packaging import load
from featherweight.training import load_weights
from featherweight.training.own import load_function

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
        >>> load_model("zoo:lenet5", classes=7)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 7])
    """
    if weights is not None and spec.endswith(".fw"):
        raise RequestError(f"a .fw file comes with its weights, got others for {spec!r}; leave --weights out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _make(spec, input_shape, classes)
    if weights is not None:
        load_weights(model, Path(weights))
    return model.eval()


def _make(spec: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    if spec.startswith("zoo:"):
        return look_up(NETS, spec.removeprefix("zoo:"), "a net of the zoo")(input_shape=input_shape, classes=classes)
    if spec.endswith(".fw"):
        return load(spec)
    if spec.endswith(".pt2"):
        return _exported(Path(spec))
    if ":" in spec:
        return _users_own(spec)
    raise RequestError(
        f"a model must be zoo:NAME ({', '.join(NETS)}), package.module:function, or a .pt2 or .fw file, got {spec!r}"
    )


def _exported(path: Path) -> ProgramModule:
    try:
        exported = torch.export.load(path)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        reason = str(error).strip().partition("\n")[0]
        raise RequestError(f"a .pt2 model must be a file that torch.export.save wrote, but {path} is not: {reason}") from error
    try:
        program = from_exported(exported)
    except CaptureError as error:
        raise CaptureError(f"{error}; in {path}, exported in training mode? call .eval() first") from error
    fixed = [f"{spec.name} {spec.shape}" for spec in program.inputs if not spec.shape or spec.shape[0] is not None]
    if fixed:
        raise RequestError(
            f"a .pt2 model must take batches of any size, but {path} was exported for {', '.join(fixed)}; export it with "
            "dynamic_shapes=({0: torch.export.Dim('batch')},) and a batch of at least 2"
        )
    training = sorted({node.op for node in program.nodes if _is_in_training(node)})
    if training:
        raise RequestError(f"a .pt2 model must be exported in eval mode, but {path} has {training[0]} on: call .eval() first")
    values = {**exported.constants, **exported.state_dict}
    return ProgramModule(program, {spec.name: values[spec.name].detach().clone() for spec in program.tensors})


def _is_in_training(node: Node) -> bool:
    """Whether this is dropout that was told to train."""
    schema = getattr(resolve_op(node.op), "_schema", None)
    if schema is None:  # one of Python's own operators
        return False
    return any(spec.name == "train" and value is True for spec, value in zip(schema.arguments, node.args, strict=False))


def _users_own(spec: str) -> nn.Module:
    make = load_function(spec)
    try:
        model = make()
    except Exception as error:  # the user's own code
        raise RequestError(f"the model {spec!r} must be a function without arguments, but calling it gave {error!r}") from error
    if not isinstance(model, nn.Module):
        raise RequestError(f"the model {spec!r} must return a torch.nn.Module, got {type(model).__name__}")
    return model
