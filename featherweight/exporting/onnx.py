"""ONNX: the form in which a network runs outside PyTorch, checked against the network before it is handed out."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from featherweight.errors import FeatherweightError, RequestError
from featherweight.exporting.qdq import QuantizedModule, in_floats, write_integers
from featherweight.files import replacing
from featherweight.graph.capture import Example, as_example, to_module
from featherweight.graph.functions import resolve_op
from featherweight.graph.program import Node, Program, ProgramModule, map_refs

__all__ = ["open_session", "resize_batch", "to_onnx", "translate"]

_LARGEST = 2**31 - 1  # Protocol buffers, and so ONNX files without companions, end at 2 GB.


def to_onnx(model: nn.Module, path: str | Path, example: Example) -> Path:
    """Writes the network as one ONNX file with its weights inside, for any batch size.

    What is written is `translate`'s result, so it has been compared with the network. The file appears whole or not at all.

    Args:
        model: any module that can be captured, a loaded `.fw` file too; it is not changed.
        path: where to write; an existing file is replaced.
        example: a batch of inputs; axis 0 is the batch.

    Returns:
        The path written.

    Raises:
        RequestError: the path cannot be written (found out before anything else is done), or the weights exceed 2 GB.
        CaptureError: the network cannot be captured.
        FeatherweightError: ONNX cannot express the network, or ONNX Runtime disagrees with it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_onnx(nn.Linear(4, 2), Path(folder, "net.onnx"), torch.zeros(1, 4)).name
        'net.onnx'
    """
    path = Path(path)
    with replacing(path) as file:
        file.write(translate(model, example))
    return path


def translate(model: nn.Module, example: Example) -> bytes:
    """The network as the bytes of an ONNX file: constraints folded, eval mode, any batch size.

    Inputs keep the names of `forward`'s parameters; outputs are called "output", or "output_0", "output_1", … where there are
    several. The result has been run in ONNX Runtime on the example and at another batch size: each output differs from the
    network's by at most √ε of its data type (3.5e-4 for float32) times the output's largest magnitude, and integers not at all.

    Quantized activations (`quantization.place_quantizers`) become QuantizeLinear and DequantizeLinear, and weights on a grid of
    8 bits become bytes. Kernels add in another order than PyTorch, so that a value half-way between two of the grid may go to
    the other one, and what follows differs. Outputs then differ from the network's in root mean square by at most twice what
    quantizing activations itself changes them (two independent roundings would differ by √2 times that), or 1 % of theirs.
    Outputs that are integers are compared by shape only.

    Args:
        model: any module that can be captured; it is not changed.
        example: a batch of inputs; axis 0 is the batch.

    Returns:
        The bytes.

    Raises:
        RequestError: the weights exceed 2 GB.
        CaptureError: the network cannot be captured.
        FeatherweightError: ONNX cannot express the network, or ONNX Runtime disagrees with it.

    Example:
        >>> content = translate(nn.Linear(4, 2), torch.zeros(1, 4))
        >>> open_session(content).run(None, {"input": torch.zeros(5, 4).numpy()})[0].shape
        (5, 2)
    """
    net = to_module(model, example).eval().cpu()
    weight_bytes = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    if weight_bytes > _LARGEST:
        raise RequestError(
            f"the weights of a network in one ONNX file must fit in 2 GB, got {weight_bytes} bytes: compress it first"
        )
    content = _export(net)
    _check(content, net, example)
    return content


def open_session(content: bytes, *, threads: int = 1) -> Any:
    """An ONNX Runtime session on the CPU that runs one operation after another, each on `threads` threads.

    Threads do not spin while they wait: a session would otherwise slow down whatever runs beside it, another session included.

    Args:
        content: the bytes of an ONNX file.
        threads: at least 1.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        RequestError: `threads` is below 1.
        FeatherweightError: ONNX Runtime cannot run the network.
    """
    if threads < 1:
        raise RequestError(f"threads must be at least 1, got {threads}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise FeatherweightError(f"ONNX Runtime {onnxruntime.__version__} cannot run this network: {error}") from error


def resize_batch(program: Program, example: Example, batch: int) -> tuple[torch.Tensor, ...]:
    """The example's tensors on the CPU with `batch` samples: the first ones, starting over where there are too few.

    Args:
        program: tells which inputs have a batch axis; the others stay as they are.
        example: the arguments of `forward`, at least 1 sample; what is no tensor is part of the program already.
        batch: at least 1.

    Returns:
        One tensor for each of the program's inputs, each (batch, …).
    """
    tensors = [value.detach().cpu() for value in as_example(example) if isinstance(value, torch.Tensor)]
    return tuple(
        tensor[torch.arange(batch) % len(tensor)] if None in spec.shape else tensor
        for spec, tensor in zip(program.inputs, tensors, strict=True)
    )


class _Exportable(QuantizedModule):
    """Runs attention in the form that torch.onnx translates: of four axes, and with an output of known strides.

    Its own attention gives other strides than torch's, and what was a view of one is none of the other.
    """

    def _run(self, position: int, node: Node, values: Sequence[Any]) -> Any:
        if node.op != "scaled_dot_product_attention":
            return super()._run(position, node, values)
        query, key, value, *rest = map_refs(node.args, lambda ref: values[ref.index])
        outer = query.shape[:-3]
        if len(outer) != 1:
            query, key, value = (t.reshape(-1, *t.shape[-3:]) if t.dim() > 3 else t[None] for t in (query, key, value))
            if rest and rest[0] is not None and rest[0].dim() > 3:
                rest[0] = rest[0].expand(*outer, *rest[0].shape[-3:]).reshape(-1, *rest[0].shape[-3:])
        result = resolve_op(node.op)(query, key, value, *rest, **node.kwargs)
        result = result.clone(memory_format=torch.contiguous_format)
        return result if len(outer) == 1 else result.reshape(*outer, *result.shape[-3:])


def _export(net: ProgramModule) -> bytes:
    program = net.program
    net = _Exportable(program, net.state_dict(keep_vars=True)).eval()
    axes = tuple({i: "batch" for i, size in enumerate(spec.shape) if size is None} for spec in program.inputs)
    count = len(pytree.tree_leaves(program.output))
    with _silence():
        try:
            exported = torch.onnx.export(
                net,
                program.example(batch=2),
                dynamo=True,
                verbose=False,
                input_names=[spec.name for spec in program.inputs],
                output_names=["output"] if count == 1 else [f"output_{i}" for i in range(count)],
                dynamic_shapes=(axes,),
            )
            model = exported.model_proto  # type: ignore[union-attr]
        except Exception as error:
            reason = str(error.__cause__ or error).strip().splitlines()[:3]
            raise FeatherweightError("torch.onnx cannot express this network: " + "\n".join(reason)) from error
    write_integers(model, net.bounds)
    content: bytes = model.SerializeToString()
    return content


def _check(content: bytes, net: ProgramModule, example: Example) -> None:
    """Raises if ONNX Runtime's outputs differ from the network's, on the example or at another batch size."""
    session = open_session(content)
    exact = in_floats(net)
    size = max((len(t) for t in as_example(example) if isinstance(t, torch.Tensor) and t.dim() > 0), default=1)
    for batch in sorted({1, size, size + 3}):
        inputs = resize_batch(net.program, example, batch)
        with torch.no_grad():
            wanted = pytree.tree_leaves(net(*inputs))
            unrounded = wanted if exact is None else pytree.tree_leaves(exact(*inputs))
        feeds = {spec.name: tensor.numpy() for spec, tensor in zip(net.program.inputs, inputs, strict=True)}
        try:
            got = session.run(None, feeds)
        except Exception as error:
            raise FeatherweightError(f"ONNX Runtime fails on this network at batch size {batch}: {error}") from error
        for output, want, have, float_ in zip(session.get_outputs(), wanted, got, unrounded, strict=True):
            where = f"{output.name!r} at batch size {batch}"
            if exact is None:
                _compare(torch.from_numpy(have), want, where)
            else:
                _compare_rounded(torch.from_numpy(have), want, float_, where)


def _compare(got: torch.Tensor, want: torch.Tensor, where: str) -> None:
    _compare_form(got, want, where)
    allowed = 0.0
    if want.is_floating_point():
        finite = want[want.isfinite()].abs()
        allowed = torch.finfo(want.dtype).eps ** 0.5 * (finite.max().item() if len(finite) else 0.0)
    if not torch.allclose(got, want, rtol=0.0, atol=allowed, equal_nan=True):
        _refuse(where, "up to", (got.double() - want.double()).abs().max().item(), allowed)


def _compare_rounded(got: torch.Tensor, want: torch.Tensor, unrounded: torch.Tensor, where: str) -> None:
    """As `_compare`, where activations are rounded to a grid: see `translate` for what is allowed."""
    _compare_form(got, want, where)
    if want.is_floating_point() and want.numel():
        differs, by_itself, size = (t.double().square().mean().sqrt().item() for t in (got - want, unrounded - want, want))
        allowed = max(2 * by_itself, 0.01 * size)
        if not differs <= allowed:
            _refuse(where, "a root mean square of", differs, allowed)


def _compare_form(got: torch.Tensor, want: torch.Tensor, where: str) -> None:
    if got.shape != want.shape or got.dtype != want.dtype:
        raise FeatherweightError(
            f"ONNX Runtime must give what the network gives, but for {where} it gives {tuple(got.shape)} {got.dtype} "
            f"and the network {tuple(want.shape)} {want.dtype}"
        )


def _refuse(where: str, measure: str, differs: float, allowed: float) -> None:
    raise FeatherweightError(
        f"ONNX Runtime must give what the network gives, but for {where} they differ by {measure} {differs:.3g} "
        f"(allowed: {allowed:.3g}); nothing was written. Run the network in PyTorch, and report this as a bug"
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """torch.onnx reports its progress and its own deprecations, none of which is the user's business."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
