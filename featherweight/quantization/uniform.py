"""Uniform quantization: weights as integer multiples of a step, and activations too, if asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import torch
from torch import nn

from featherweight.errors import DataError, RequestError, WeightsError, check, look_up
from featherweight.graph.capture import Example, as_example, capture, like, tensors_of
from featherweight.graph.constraint import constrain, constrain_like, fold
from featherweight.graph.program import ProgramModule, tensor_called
from featherweight.graph.rewrite import LINEAR_OPS, add_biases, fold_batch_norm
from featherweight.graph.selection import select_weights
from featherweight.quantization.activations import place_quantizers
from featherweight.quantization.correction import expected_inputs, measured_shifts, predicted_shifts
from featherweight.quantization.equalization import equalize_layers
from featherweight.quantization.grid import Grid
from featherweight.quantization.ranges import RANGES, RangeFunction, Scheme
from featherweight.quantization.rounding import ROUNDINGS, round_weight
from featherweight.training.inputs import input_hessians
from featherweight.training.loaders import Loader
from featherweight.training.statistics import Evidence, batches_of

__all__ = ["UniformOptions", "choose_grid", "quantize_uniform"]

_log = logging.getLogger(__name__)

_ELEMENTS_AT_ONCE = 2**24  # of a weight that a range is chosen for


@dataclass(frozen=True)
class UniformOptions:
    """How `quantize_uniform` goes about it.

    Args:
        per: what has a step of its own: each tensor, each output channel, or in each output channel each group of inputs.
        group: with per="group", how many inputs are a group, at least 1; the last may be smaller.
        symmetric: whether the weights' grids reach as far below zero as above, as int8 kernels want it, or are shifted to where
            the weights lie.
        ranges: which interval of weights a grid covers, a name in `RANGES`.
        rounding: a name in `ROUNDINGS`; all but "nearest" need data.
        equalize: whether channels are scaled against those of the next layer first, see `equalize_layers`.
        correct_bias: whether biases make up for the shift of each channel's mean, measured on data, or without any predicted
            from batch norms.
        activation_ranges: as `ranges`, for activations.

    Raises:
        RequestError: an unknown name, or a number out of range.
    """

    per: Literal["tensor", "channel", "group"] = "channel"
    group: int = 64
    symmetric: bool = True
    ranges: str = "mse"
    rounding: str = "nearest"
    equalize: bool = False
    correct_bias: bool = False
    activation_ranges: str = "mse"

    def __post_init__(self) -> None:
        look_up({"tensor": 0, "channel": 0, "group": 0}, self.per, "per")
        check("group", self.group, "a whole number of at least 1", isinstance(self.group, int) and self.group >= 1)
        for name in (self.ranges, self.activation_ranges):
            look_up(RANGES, name, "ranges")
        look_up(ROUNDINGS, self.rounding, "rounding")


_PLAIN = UniformOptions()


def quantize_uniform(
    model: nn.Module,
    example: Example,
    *,
    weight_bits: int | Mapping[str, int] = 8,
    activation_bits: int | None = None,
    calibrate: Loader | None = None,
    options: UniformOptions = _PLAIN,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> nn.Module:
    """Puts weights on grids of few integers times a step, and activations if asked, ready to be trained further or deployed.

    Jacob et al. (CVPR 2018); the choices follow Nagel et al., "A white paper on neural network quantization" (2021), section 3.
    Biases and norms stay as they are. Zeros stay zeros, and masks and codebooks stay on the weights that still meet them;
    grids that a weight has already are replaced. A tensor of which each channel has one weight has one step.

    Args:
        model: any module; it is not changed.
        example: a batch of inputs.
        weight_bits: in [2, 16], for all weights of at least two axes, or by name for those alone.
        activation_bits: in [2, 8]; None leaves activations as they are.
        calibrate: batches of (inputs, targets), of which the inputs count; needed for activations, and for learned roundings.
        options: how steps are shared and chosen, how weights are rounded, what is done before and after.
        include: shell-style patterns of parameter names; only these, if given.
        exclude: patterns of names to leave alone.

    Returns:
        A copy with a `Grid` on each quantized weight, behind which the weight is what it was ("nearest") or already rounded.
        Of the user's own class; a `ProgramModule`, its batch norms folded into the weights, where activations are quantized,
        layers equalised or biases corrected.

    Raises:
        RequestError: an option out of range, an unknown name, or missing data.
        WeightsError: a weight is not finite, or its type cannot hold so many integers.
        DataError: the data hold nothing, or do not fit the network.
        CaptureError, UnsupportedOpError: as `capture` says, where a program is needed.

    Example:
        >>> layer = nn.Linear(64, 3)
        >>> quantized = quantize_uniform(layer, torch.zeros(1, 64), weight_bits=2)
        >>> all(len(row.unique()) <= 4 for row in quantized.weight)
        True
    """
    if calibrate is not None:
        _check_data(model, example, calibrate)
    network, means = _prepared(model, example, calibrate, options, activations=activation_bits is not None)
    bits = _bits_of(network, weight_bits, include, exclude)
    weights = {name: tensor_called(network, name).detach().clone() for name in bits}
    axes = _channel_axes(network, weights)
    grids = {name: choose_grid(w, bits[name], axis=axes[name], options=options, name=name) for name, w in weights.items()}
    hessians: Mapping[str, torch.Tensor] = {}
    if options.rounding != "nearest":
        hessians = input_hessians(Evidence(network, calibrate, purpose=f"the rounding {options.rounding!r}"), list(grids))
    rounded = {
        name: round_weight(weights[name], grid, rounding=options.rounding, hessians=hessians.get(name)).detach()
        for name, grid in grids.items()
    }
    if isinstance(network, ProgramModule) and options.correct_bias:
        _correct_biases(network, {name: rounded[name] - weights[name] for name in grids}, means, calibrate)
    if isinstance(network, ProgramModule) and activation_bits is not None:
        _write(network, rounded)
        network = place_quantizers(network, calibrate=_given(calibrate), bits=activation_bits, ranges=options.activation_ranges)
    _write(network, weights if options.rounding == "nearest" else rounded)
    constrain_like(network, model, but=Grid)
    for name, grid in grids.items():
        constrain(network, name, grid)
    return network


def choose_grid(
    weight: torch.Tensor, bits: int, *, axis: int = 0, options: UniformOptions = _PLAIN, name: str = "weight"
) -> Grid:
    """The grid for a weight.

    Args:
        weight: of at least two axes.
        bits: in [2, 16].
        axis: of the output channels.
        options: of which `per`, `group`, `symmetric` and `ranges` count. There are groups only where the outputs are axis 0.
        name: for messages.

    Returns:
        The grid, its steps of the weight's dtype.

    Raises:
        RequestError: bits out of range.
        WeightsError: the weight is not finite, or its type cannot hold so many integers.

    Example:
        >>> choose_grid(torch.tensor([[1.0, 0.5], [0.1, -0.1]]), 8, options=UniformOptions(ranges="minmax")).step
        Parameter containing:
        tensor([[0.0079],
                [0.0008]], requires_grad=True)
    """
    scheme = Scheme(bits, options.symmetric)
    _check_weight(weight, scheme, name)
    choose = RANGES[options.ranges]
    group = None
    if options.per == "tensor" or not weight.numel() or weight[(slice(None),) * axis + (0,)].numel() < 2:
        rows, shape = weight.reshape(1, -1), [1] * weight.dim()
    elif options.per == "channel" or axis != 0 or weight.shape[1] <= options.group:
        rows = weight.movedim(axis, 0).flatten(1)
        shape = [len(rows) if each == axis else 1 for each in range(weight.dim())]
    else:
        group = torch.arange(weight.shape[1], device=weight.device) // options.group
        padded = weight.new_zeros(len(weight), (int(group[-1]) + 1) * options.group, *weight.shape[2:])
        padded[:, : weight.shape[1]] = weight
        rows = padded.reshape(len(weight) * (int(group[-1]) + 1), -1)
        shape = [len(weight), int(group[-1]) + 1, *[1] * (weight.dim() - 2)]
    step, low, high = _choose(rows.detach(), choose, scheme)
    return Grid(step.to(weight.dtype).reshape(shape), low.reshape(shape), high.reshape(shape), group)


def _choose(rows: torch.Tensor, choose: RangeFunction, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Steps and bounds for each row, a part of the rows at a time."""
    parts = []
    for part in rows.split(max(1, _ELEMENTS_AT_ONCE // max(1, rows.shape[1]))):
        exact = part if part.dtype is torch.float64 else part.float()
        parts.append(scheme.grid(*choose(exact, None, scheme)))
    step, low, high = (torch.cat(each) for each in zip(*parts, strict=True))
    return step, low, high


def _check_weight(weight: torch.Tensor, scheme: Scheme, name: str) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise WeightsError(
            f"weights to quantize must be finite, but {name!r} holds NaN or infinity; train again, or exclude it"
        )
    largest = 2 ** (scheme.bits - 1 if scheme.symmetric else scheme.bits)
    held = int(2 / torch.finfo(weight.dtype).eps)
    if largest > held:
        raise WeightsError(
            f"a weight's type must hold its integers exactly, but {name!r} is {weight.dtype} and holds them up to {held} only, "
            f"not {largest}; take fewer bits, or model.float()"
        )


def _check_data(model: nn.Module, example: Example, calibrate: Loader) -> None:
    """The first batch must be finite and look like the example."""
    wanted = as_example(example)[0]
    inputs, _ = next(batches_of(Evidence(model, calibrate, purpose="calibration")))
    if inputs.shape[1:] != wanted.shape[1:] or inputs.dtype != wanted.dtype:
        raise DataError(
            f"data to calibrate on must look like the example, batches of {tuple(wanted.shape[1:])} of {wanted.dtype}, got "
            f"{tuple(inputs.shape[1:])} of {inputs.dtype}"
        )
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise DataError("data to calibrate on must be finite, got NaN or infinity")


def _given(calibrate: Loader | None) -> Loader:
    if calibrate is None:
        raise RequestError("to quantize activations needs data to see what they are, got none; pass calibrate=")
    return calibrate


def _prepared(
    model: nn.Module, example: Example, calibrate: Loader | None, options: UniformOptions, *, activations: bool
) -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
    """A copy with plain weights, as a program where one is needed; and without data the means that batch norms predict."""
    if activations:
        _given(calibrate)
    folded = fold(model)
    if not (activations or options.equalize or options.correct_bias):
        return folded, {}
    program = capture(folded, example)
    tensors = tensors_of(folded, program)
    means = expected_inputs(program, tensors) if options.correct_bias and calibrate is None else {}
    program, tensors = fold_batch_norm(program, tensors)
    if options.equalize:
        tensors, divided = equalize_layers(program, tensors)
        means = {name: mean / divided[name].cpu() if name in divided else mean for name, mean in means.items()}
    if options.correct_bias:
        layers = [i for i, n in enumerate(program.nodes) if n.op in LINEAR_OPS and program.tensor_name(n.args[1]) is not None]
        program, tensors = add_biases(program, tensors, layers)
    network = ProgramModule(program, {name: tensor.clone() for name, tensor in tensors.items()})
    return like(folded, network), means


def _bits_of(
    network: nn.Module, weight_bits: int | Mapping[str, int], include: Sequence[str] | None, exclude: Sequence[str] | None
) -> dict[str, int]:
    """How many bits each weight gets, by name."""
    names = list(select_weights(network, include=include, exclude=exclude))
    if not isinstance(weight_bits, Mapping):
        Scheme(weight_bits)
        return dict.fromkeys(names, weight_bits)
    everything = list(select_weights(network))
    for name in weight_bits:
        if name not in everything:
            near = get_close_matches(name, everything, n=3, cutoff=0.4) or everything[:3]
            raise RequestError(f"weight_bits must name weights of the network, got {name!r}; near are {', '.join(near)}")
    return {name: weight_bits[name] for name in names if name in weight_bits}


def _channel_axes(network: nn.Module, names: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The axis of each weight's output channels: 0, but 1 in transposed convolutions."""
    axes = dict.fromkeys(names, 0)
    if isinstance(network, ProgramModule):
        transposed = [
            network.program.tensor_name(n.args[1]) for n in network.program.nodes if n.op.startswith("conv_transpose")
        ]
    else:
        kinds = nn.modules.conv._ConvTransposeNd
        transposed = [f"{path}.weight".lstrip(".") for path, m in network.named_modules() if isinstance(m, kinds)]
    return axes | {name: 1 for name in transposed if name in axes}


@torch.no_grad()
def _write(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        tensor_called(network, name).copy_(weight)


@torch.no_grad()
def _correct_biases(
    network: ProgramModule, changes: Mapping[str, torch.Tensor], means: Mapping[str, torch.Tensor], calibrate: Loader | None
) -> None:
    """Takes the shifts of the changed weights off the biases, in place."""
    program = network.program
    shifts = predicted_shifts(program, changes, means) if calibrate is None else measured_shifts(network, changes, calibrate)
    for node in program.nodes:
        name = program.tensor_name(node.args[1]) if node.op in LINEAR_OPS else None
        if name in shifts:
            bias = tensor_called(network, str(program.tensor_name(node.args[2])))
            bias -= shifts.pop(name).to(bias)
            changes = {other: change for other, change in changes.items() if other != name}
    if changes:
        _log.info("no batch norm tells the inputs of %s, whose biases stay; pass calibrate=", ", ".join(changes))
