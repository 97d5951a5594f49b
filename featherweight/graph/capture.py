"""From a module to a `Program`, and to the module that runs it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from featherweight.errors import CaptureError
from featherweight.graph.constraint import fold
from featherweight.graph.exported import from_exported
from featherweight.graph.program import (
    Program,
    ProgramModule,
    Ref,
    tensor_called,
)

__all__ = ["Example", "as_example", "capture", "example_of", "like", "on_device_of", "tensors_of", "to_module", "twin_of"]

Example = torch.Tensor | Sequence[Any]
"""One batch of inputs: a tensor, or a sequence of the arguments of `forward`. Axis 0 of each tensor is the batch."""

_Twin = TypeVar("_Twin", bound=ProgramModule)

# What they give is no number of a row, whatever they read.
_TESTS = frozenset("eq.Scalar ne.Scalar gt.Scalar ge.Scalar lt.Scalar le.Scalar sym_size.int".split())


def capture(model: nn.Module, example: Example) -> Program:
    """Captures what a module computes, in eval mode, for any batch size.

    Constraints (parametrizations) are folded first, on a copy: the program sees plain weights under their plain names. Tensors
    that the network never reads (a batch norm's step counter, an unused layer) are left out. A network that is a
    `ProgramModule` already gives its own program.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs, at least 1 sample; only shapes and dtypes matter, axis 0 is the batch.

    Returns:
        The program. Its tensors' values stay with the module: see `tensors_of`.

    Raises:
        CaptureError: `torch.export` failed (its own message is attached), or the network runs for one batch size only.
        UnsupportedOpError: the network holds an operation that a program may not hold (named with file:line).

    Example:
        >>> program = capture(torch.nn.Linear(4, 2), torch.zeros(3, 4))
        >>> [node.op for node in program.nodes], program.inputs[0].shape
        (['linear'], (None, 4))
    """
    if type(model) is ProgramModule:  # a masked one computes something else
        return model.program
    args = tuple(_two_samples(a) for a in on_device_of(model, as_example(example)))
    shapes = tuple(_batch_axis(a) for a in args)
    frozen = fold(model).eval()
    program = _export(frozen, args, shapes)
    if program.constants and _wake(frozen, program):
        program = _awake(frozen, args, shapes, program)
    for spec in program.inputs:
        if spec.shape and spec.shape[0] is not None:
            raise CaptureError(
                f"a network must run for any batch size, but {type(model).__name__} takes {spec.name!r} only in batches of "
                f"{spec.shape[0]}, those it was captured with; take the batch size from x.shape[0], not from len(x)"
            )
    tensors_of(frozen, program)
    return program


def _export(model: nn.Module, args: tuple[Any, ...], shapes: tuple[Any, ...]) -> Program:
    try:
        with warnings.catch_warnings():
            # Recurrent layers set their own list of weights anew each time, which changes nothing.
            warnings.filterwarnings("ignore", "The tensor attributes? .*_flat_weights", UserWarning)
            exported = torch.export.export(model, args, dynamic_shapes=_named(model, shapes), strict=False)
    except Exception as error:
        raise CaptureError(
            f"torch.export could not capture {type(model).__name__}: {_first_lines(str(error))}\n"
            "forward() must be traceable for any batch size, without Python control flow on tensor values"
        ) from error
    return from_exported(exported)


def _awake(model: nn.Module, args: tuple[Any, ...], shapes: tuple[Any, ...], asleep: Program) -> Program:
    """The program of a model with some modules in train mode, if it computes what it did when all were in eval mode."""
    inputs = [a for a in args if isinstance(a, torch.Tensor)]
    try:
        awake = _export(model, args, shapes)
        with torch.no_grad():
            twins = [ProgramModule(p, tensors_of(model, p)).eval() for p in (asleep, awake)]
            expected, found = (pytree.tree_leaves(twin(*inputs)) for twin in twins)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    except (CaptureError, AssertionError):
        return asleep
    return awake


def _wake(model: nn.Module, program: Program) -> bool:
    """Puts modules in train mode, in place, that have parameters of their own which the program never reads; whether any.

    What some modules compute from their parameters they keep in eval mode, so that it would be a constant, as LeViT's biases.
    Their submodules (dropout, norms) stay in eval mode.
    """
    read = {spec.name for spec in program.tensors}
    asleep = [
        module
        for path, module in model.named_modules()
        if any(f"{path}.{name}" not in read for name, _ in module.named_parameters(recurse=False))
    ]
    for module in asleep:
        module.training = True
    return bool(asleep)


def as_example(example: Example) -> tuple[Any, ...]:
    """The arguments of `forward` as a tuple, from a tensor or a sequence."""
    return (example,) if isinstance(example, torch.Tensor) else tuple(example)


def on_device_of(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs, with their tensors where the model's are."""
    device = next((tensor.device for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor)), None)
    return tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs)


def example_of(network: ProgramModule, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """The program's example, but with random rows where an input says which rows of a table are looked up.

    Zeros alone would be a poor check of a network of texts, to which they may all be padding.

    Args:
        network: gives the program and the tables.
        batch: the size of every batch axis, at least 1.
        seed: of the generators.

    Returns:
        One tensor for each input, in order, on the CPU.
    """
    made = list(network.program.example(batch, seed))
    generator = torch.Generator().manual_seed(seed)
    for i, given in enumerate(made):
        rows = 0 if given.is_floating_point() else _rows_meant(network, Ref(i))
        if rows:
            made[i] = torch.randint(rows, given.shape, generator=generator, dtype=given.dtype)
    return tuple(made)


def tensors_of(model: nn.Module, program: Program) -> dict[str, torch.Tensor]:
    """The program's tensors, read from the module it was captured from, constraints folded; detached, not copied.

    Args:
        model: the module; it is not changed.
        program: captured from it.

    Returns:
        A tensor for each of `program.tensors`, by name.

    Raises:
        CaptureError: the module lacks one of them, so it is not what the program was captured from.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> sorted(tensors_of(layer, capture(layer, torch.zeros(1, 4))))
        ['bias', 'weight']
    """
    found = {}
    for spec in program.tensors:
        if spec.name in program.constants:
            value = program.constants[spec.name]
        else:
            try:
                value = tensor_called(model, spec.name)
            except AttributeError as error:
                raise CaptureError(f"this network has no tensor {spec.name!r}, which the program reads") from error
        found[spec.name] = value.detach()
    return found


def to_module(model: nn.Module, example: Example) -> ProgramModule:
    """The captured twin of a module: same weights (copied), same mode, same outputs, no code of the user's.

    Args:
        model: any module that `torch.export` captures; it is not changed.
        example: a batch of inputs.

    Returns:
        The twin.

    Raises:
        CaptureError, UnsupportedOpError: as `capture` says.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> torch.equal(to_module(layer, torch.zeros(1, 4))(torch.ones(3, 4)), layer(torch.ones(3, 4)))
        True
    """
    program = capture(model, example)
    folded = fold(model)
    return twin_of(folded, program, {name: t.clone() for name, t in tensors_of(model, program).items()})


def twin_of(model: nn.Module, program: Program, tensors: Mapping[str, torch.Tensor]) -> ProgramModule:
    """A `ProgramModule` in the model's mode, trainable where the model is; the model's constraints must be folded."""
    return like(model, ProgramModule(program, tensors))


def like(model: nn.Module, twin: _Twin) -> _Twin:
    """Puts a program of the model's in the model's mode, trainable where the model is, in place; what is new stays as it is."""
    twin.train(model.training)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters(remove_duplicate=False)}
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(trainable.get(name, parameter.requires_grad))
    return twin


def _rows_meant(network: ProgramModule, value: Ref) -> int:
    """The rows of the smallest table in which a value is looked up; 0 where other operations than tests read it as well."""
    rows = []
    for node in network.program.nodes:
        if value not in node.refs:
            continue
        if node.op == "embedding" and node.args[1] == value and (table := network.program.tensor_name(node.args[0])):
            rows.append(len(tensor_called(network, table)))
        elif node.op not in _TESTS:
            return 0
    return min(rows, default=0)


def _two_samples(value: Any) -> Any:
    """A batch of one becomes a batch of two: torch.export treats sizes 0 and 1 as special and would fix the batch size."""
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        return value[:1].expand(2, *value.shape[1:]).contiguous()
    return value


def _batch_axis(value: Any) -> Any:
    return {0: torch.export.Dim.AUTO} if isinstance(value, torch.Tensor) and value.dim() > 0 else None


def _named(model: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """torch.export wants the shapes of *args nested one deeper than those of named parameters."""
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        return (*shapes[:named], tuple(shapes[named:]))
    return shapes


def _first_lines(message: str) -> str:
    return "\n".join(message.strip().splitlines()[:3])
