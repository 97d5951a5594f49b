"""Gates put on a network: one in front of each residual branch, or one policy network for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from featherweight.dynamic.branches import HEADS, Head, has_channels_last, make_head
from featherweight.dynamic.skips import SkipNetwork, skippable
from featherweight.errors import RequestError, check, look_up
from featherweight.graph.capture import Example, capture, tensors_of, to_module
from featherweight.graph.constraint import duplicate
from featherweight.graph.program import Program, ProgramModule, Ref
from featherweight.graph.residuals import Residual
from featherweight.graph.rewrite import graft
from featherweight.graph.shapes import infer_shapes
from featherweight.training.mode import device_of

__all__ = ["add_gates", "add_policy", "image_policy", "start_at"]

_OPEN = 2.0  # yes, with a probability of 0.88


def start_at(gate: nn.Module, logit: float) -> nn.Module:
    """Makes a gate say the same to every sample, IN PLACE, so that it learns from there.

    Args:
        gate: any module; its last linear layer is what changes, and one without is left alone.
        logit: what it says.

    Returns:
        The same.

    Example:
        >>> start_at(nn.Linear(3, 1), 2.0)(torch.randn(2, 3)).tolist()
        [[2.0], [2.0]]
    """
    layers = [layer for layer in gate.modules() if isinstance(layer, nn.Linear)]
    if layers:
        nn.init.zeros_(layers[-1].weight)
        if layers[-1].bias is not None:
            nn.init.constant_(layers[-1].bias, logit)
    return gate


def image_policy(channels: int, branches: int) -> nn.Module:
    """A small policy network for images: two convolutions of stride 2 with 8 and 16 channels, and a linear layer on tiles.

    It has no batch norms, so that it says the same in train and in eval mode.

    Args:
        channels: of the images.
        branches: how many it decides on.

    Returns:
        (B, channels, rows, columns) -> (B, branches).

    Example:
        >>> image_policy(1, 9)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 9])
    """
    features = [nn.Conv2d(channels, 8, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, padding=1), nn.ReLU()]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, branches))


def add_gates(
    model: nn.Module, example: Example, *, at: Sequence[str] | None = None, gate: str | Head = "mean", seed: int = 0
) -> SkipNetwork:
    """A copy of a network with a gate in front of each residual branch, which looks at what the branch is added to.

    SkipNet with feed-forward gates (Wang, Yu, Dou, Darrell and Gonzalez, ECCV 2018): a layer is executed or bypassed for each
    sample, y = g(x) · F(x) + (1 - g(x)) · x. Theirs have a convolution; here a gate is a linear layer on means over all
    positions. Gates start open, so the answers are the network's own, bit for bit; they learn with the network, see
    `skip_loss` and `reinforce`.

    Args:
        model: (B, …) -> (B, …), any with residual branches that can be captured; it is not changed.
        example: a batch of inputs.
        at: names of branches, those of their last layers; all that hold no other by default.
        gate: a name in `HEADS`, or a function (channels, positions, 1) -> module. On sequences a layer norm comes first.
        seed: of the gates' weights.

    Returns:
        The network with gates, in the model's mode; tensors of gate k are called "gates.k.…".

    Raises:
        RequestError: there is nothing to skip, or a name is no branch's.
        CaptureError: the model or a gate cannot be captured.
        UnsupportedOpError: samples do not lie on axis 0 where a branch begins or ends.

    Example:
        >>> from featherweight.nets import resnet20
        >>> net = add_gates(resnet20(), torch.zeros(1, 1, 28, 28), at=["stage1.1.conv2", "stage2.1.conv2"])
        >>> net.branches, round(net.share_of(torch.tensor([[False, False]])).item(), 3)
        (('stage1.1.conv2', 'stage2.1.conv2'), 0.767)
    """
    make = look_up(HEADS, gate, "gate") if isinstance(gate, str) else gate
    twin = to_module(model, example)
    program, tensors = twin.program, dict(twin.state_dict(keep_vars=True))
    residuals = _chosen(program, tensors, at)
    values = infer_shapes(program, tensors, batch=3)
    skips = [residual.skip.index for residual in residuals]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        last = [has_channels_last(program, skip - program.first_node) for skip in skips]
        made = [start_at(make_head(make, values[skip], by, 1), _OPEN) for skip, by in zip(skips, last, strict=True)]
    captured: dict[tuple[torch.Size, bool], Program] = {}  # gates on values of one shape are alike
    whole, prefix = replace(program, output=(*[None] * len(skips), program.output)), _free_prefix(tensors)
    for number in sorted(range(len(skips)), key=lambda k: -skips[k]):  # the last first: nodes before it stay where they are
        skip, kind = skips[number], (values[skips[number]].shape, last[number])
        captured[kind] = captured.get(kind) or _capture(made[number], values[skip])
        position, name = max(skip - program.first_node, -1), f"{prefix}{number}."
        value = Ref(skip) if position < 0 else Ref(whole.first_node + position)
        whole, logits = graft(whole, position, value, captured[kind], prefix=name)
        whole = replace(whole, output=(*whole.output[:number], logits, *whole.output[number + 1 :]))
        tensors |= {name + own: tensor for own, tensor in tensors_of(made[number], captured[kind]).items()}
    return _network(twin, whole, tensors, residuals)


def add_policy(
    model: nn.Module, example: Example, *, at: Sequence[str] | None = None, policy: nn.Module | None = None, seed: int = 0
) -> SkipNetwork:
    """A copy of a network with a policy network, which looks at the input once and decides on all residual branches.

    BlockDrop (Wu, Nagarajan, Kumar, Rennie, Davis, Grauman and Feris, CVPR 2018, section 3.1). The policy starts with all
    branches on, so the answers are the network's own, bit for bit; it learns by `reinforce`, or as gates do.

    Args:
        model: (B, …) -> (B, …), any with residual branches that can be captured; it is not changed.
        example: a batch of inputs.
        at: names of branches, those of their last layers; all that hold no other by default.
        policy: makes logits (B, branches) of the network's first input; it is copied, and its last linear layer is set so
            that all branches are on. By default an `image_policy`.
        seed: of the weights of the default policy.

    Returns:
        The network with its policy, in the model's mode; the policy's tensors are called "gates.…".

    Raises:
        RequestError: there is nothing to skip, a name is no branch's, the policy gives another number of logits, or a policy
            is needed since the input is no image.
        CaptureError: the model or the policy cannot be captured.
        UnsupportedOpError: samples do not lie on axis 0 where a branch begins or ends.

    Example:
        >>> from featherweight.nets import resnet20
        >>> net = add_policy(resnet20(), torch.zeros(1, 1, 28, 28))
        >>> len(net.branches), net.network.get_parameter("gates.6.weight").shape
        (9, torch.Size([9, 64]))
    """
    twin = to_module(model, example)
    program, tensors = twin.program, dict(twin.state_dict(keep_vars=True))
    residuals = _chosen(program, tensors, at)
    value = infer_shapes(program, tensors, batch=3)[0]
    if policy is None:
        check("the input of a default policy", tuple(value.shape[1:]), "an image; else pass policy=", value.dim() == 4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = image_policy(value.shape[1], len(residuals))
    prefix, own = _free_prefix(tensors), start_at(duplicate(policy), _OPEN)
    addition = _capture(own, value)
    tensors |= {prefix + name: tensor for name, tensor in tensors_of(own, addition).items()}
    whole, logits = graft(replace(program, output=(None, program.output)), -1, Ref(0), addition, prefix=prefix)
    return _network(twin, replace(whole, output=(logits, whole.output[1])), tensors, residuals)


def _chosen(program: Program, tensors: Mapping[str, torch.Tensor], at: Sequence[str] | None) -> list[Residual]:
    if not isinstance(program.output, Ref):
        raise RequestError("skips are for networks that give one tensor, got several outputs, or none")
    known = {residual.name: residual for residual in skippable(program, tensors)}
    if not known:
        raise RequestError(
            "a network with gates needs residual branches to skip, sums x + f(x) of equal shapes, and this one has none; "
            "use exits or widths instead"
        )
    if at is None:
        return list(known.values())
    check("at", at, "at least one name of a branch, none twice", not isinstance(at, str) and len(set(at)) == len(at) > 0)
    return sorted((look_up(known, name, "a branch in at") for name in at), key=lambda residual: residual.total)


def _free_prefix(tensors: Mapping[str, torch.Tensor]) -> str:
    prefix = "gates"
    while any(name.partition(".")[0] == prefix for name in tensors):
        prefix += "_"
    return f"{prefix}."


def _capture(gate: nn.Module, value: torch.Tensor) -> Program:
    return capture(gate.to(value.dtype), torch.zeros(2, *value.shape[1:], dtype=value.dtype))


def _network(
    twin: ProgramModule, whole: Program, tensors: Mapping[str, torch.Tensor], residuals: Sequence[Residual]
) -> SkipNetwork:
    device = device_of(twin)
    made = ProgramModule(whole, {name: tensor.to(device) for name, tensor in tensors.items()}).train(twin.training)
    return SkipNetwork(made, [residual.name for residual in residuals])
