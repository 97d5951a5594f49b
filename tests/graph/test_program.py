"""A program runs like the module it came from, and calls nothing but operations on tensors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import UnsupportedOpError
from featherweight.graph.capture import to_module
from featherweight.graph.functions import resolve_op
from featherweight.graph.ops import OPS
from featherweight.graph.program import (
    Call,
    Input,
    Lookup,
    Node,
    Program,
    ProgramModule,
    Ref,
    TensorSpec,
    map_refs,
    refs_in,
    unused,
)

REFUSED = (
    "from_file from_file.out set_ set_.source_Storage set_.source_Tensor set.source_Tensor _print save _save resize_ "
    "resize_.default bernoulli normal_ random_ __init__ __class__ __getattr__ __module__ name _dir relu.__class__ "
    "relu.overloads relu.default.__class__ aten.relu torch.ops.aten.relu .relu relu.nothing nothing ../relu relu\0 "
    "py.__import__ py.exec py.eval py.getattr py.attrgetter py.methodcaller py.call py.setitem py.delitem py.iadd py. py"
).split()


@pytest.mark.parametrize("op", [*REFUSED, "", " relu", "relu "])
def test_refused(op: str) -> None:
    with pytest.raises(UnsupportedOpError, match="is none of them"):
        resolve_op(op)


@pytest.mark.parametrize("op", OPS)
def test_every_row_of_the_table_may_stand_in_a_program(op: str) -> None:
    assert callable(resolve_op(op))


@pytest.mark.parametrize("op", ["conv2d", "add.Tensor", "relu_", "linear", "py.getitem", "py.floordiv", "batch_norm", "cat"])
def test_allowed(op: str) -> None:
    assert callable(resolve_op(op))


@given(st.text(max_size=20))
def test_any_text_is_resolved_or_refused(op: str) -> None:
    try:
        found = resolve_op(op)
    except UnsupportedOpError:
        return
    assert callable(found)


def test_refused_in_a_module_too() -> None:
    program = Program((Input("x", (None,), torch.float32),), (), (Node("from_file", ("secret",)),), Ref(1))
    with pytest.raises(UnsupportedOpError):
        ProgramModule(program, {})


class Training(nn.Module):
    """All that behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=0.3), nn.Dropout(0.4)
        self.drop2d, self.norm1d, self.fc = nn.Dropout2d(0.3), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(F.relu(self.norm(self.conv(x)), inplace=True))
        return self.fc(self.norm1d(self.drop2d(x).mean((2, 3))))


def test_training_step_is_that_of_the_original() -> None:
    model = Training()
    twin = to_module(model, torch.randn(2, 3, 8, 8))
    x, target = torch.randn(6, 3, 8, 8), torch.randint(0, 4, (6,))
    outputs = []
    for module in (model.train(), twin.train()):
        torch.manual_seed(5)
        output = module(x)
        F.cross_entropy(output, target).backward()
        outputs.append(output)
    torch.testing.assert_close(outputs[1], outputs[0])
    gradients = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad)
    buffers = dict(twin.named_buffers())
    assert set(buffers) == {name for name, _ in model.named_buffers() if "num_batches" not in name}
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, model.get_buffer(name))
        assert not torch.equal(buffer, torch.zeros_like(buffer))
    torch.testing.assert_close(twin.eval()(x), model.eval()(x))
    assert torch.equal(twin(x), twin(x))


class AlwaysDropping(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5)


def test_dropout_that_is_always_on_stays_on() -> None:
    twin = to_module(AlwaysDropping(), torch.ones(2, 50)).eval()
    assert 0 < int((twin(torch.ones(2, 50)) == 0).sum()) < 100


def test_copies_are_independent() -> None:
    twin = to_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(1, 4))
    other = copy.deepcopy(twin)
    with torch.no_grad():
        other.get_parameter("0.weight").zero_()
    assert twin.get_parameter("0.weight").abs().max() > 0
    assert other.program == twin.program


def test_memory_is_freed_as_it_goes() -> None:
    """A value is dropped after its last use: a chain of a hundred operations never holds more than a few results."""
    nodes = tuple(Node("add.Tensor", (Ref(i), 1)) for i in range(100))
    module = ProgramModule(Program((Input("x", (None, 4), torch.float32),), (), nodes, Ref(100)), {})
    held = [len(dead) for dead in module._last_use]
    assert held == [1] * 100
    assert torch.equal(module(torch.zeros(1, 4)), torch.full((1, 4), 100.0))


def test_kinds_become_parameters_and_buffers() -> None:
    specs = (
        TensorSpec("a.w", "parameter"),
        TensorSpec("a.b", "buffer"),
        TensorSpec("c", "constant"),
        TensorSpec("n", "parameter"),
    )
    tensors = {"a.w": torch.ones(2), "a.b": torch.ones(2), "c": torch.ones(2), "n": torch.ones(2, dtype=torch.int64)}
    module = ProgramModule(Program((), specs, (), (Ref(0), Ref(3))), tensors)
    assert [(name, p.requires_grad) for name, p in module.named_parameters()] == [("n", False), ("a.w", True)]
    assert [name for name, _ in module.named_buffers()] == ["c", "a.b"]
    assert set(module.state_dict()) == set(tensors)


def test_refs_are_found_and_replaced_at_any_depth() -> None:
    value = [Ref(3), (Ref(1), 2), {"a": [Ref(0)]}, "x", None]
    assert list(refs_in(value)) == [Ref(3), Ref(1), Ref(0)]
    assert map_refs(value, lambda ref: ref.index * 10) == [30, (10, 2), {"a": [0]}, "x", None]


def test_unused_tensors_are_named() -> None:
    specs = tuple(TensorSpec(name, "parameter") for name in "abc")
    program = Program((Input("x", (None,), torch.float32),), specs, (Node("add.Tensor", (Ref(0), Ref(2))),), [Ref(4), Ref(3)])
    assert list(unused(program)) == ["a"]
    assert [program.tensor_name(Ref(i)) for i in range(5)] == [None, "a", "b", "c", None]


def test_tensors_are_looked_up_wherever_they_are_now() -> None:
    """The same module after everything that may happen to its parts."""
    names = ["0.weight", "1.0.bias", "1.1.running_mean"]
    lookup = Lookup(names)
    root = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))

    def agrees(module: nn.Sequential) -> bool:
        wanted = [module[0].weight, module[1][0].bias, module[1][1].running_mean]
        return all(torch.equal(found, want) for found, want in zip(lookup(module), wanted, strict=True))

    assert agrees(root)
    root[1][0] = nn.Linear(2, 2)
    assert agrees(root)
    nn.utils.parametrizations.weight_norm(root[0])
    root[0].parametrizations.weight.original0.data.mul_(3)
    assert agrees(root)
    assert agrees(copy.deepcopy(root))
    del root[1][0].bias
    root[1][0].bias = torch.full((2,), 7.0)  # a plain attribute, as in the replicas of DataParallel
    assert agrees(root)
    root[1][1].running_mean = torch.full((2,), 5.0)
    assert agrees(root.double())
    with pytest.raises(KeyError):
        Lookup(["2.weight"])(root)


def test_a_module_runs_on_other_tensors_for_once() -> None:
    twin = to_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(1, 4)).eval()
    x, ones = torch.randn(2, 4), {"0.weight": torch.ones(3, 4), "0.bias": torch.zeros(3)}
    wanted = x.sum(1, keepdim=True).relu().expand(2, 3)
    torch.testing.assert_close(torch.func.functional_call(twin, ones, (x,)), wanted)
    twin.load_state_dict(ones)
    torch.testing.assert_close(twin(x), wanted)
    torch.testing.assert_close(pickle.loads(pickle.dumps(twin))(x), wanted)


def test_a_call_reads_at_any_depth_and_follows_the_mode() -> None:
    values = [torch.ones(1, 2), torch.full((1, 2), 2.0), torch.tensor([0.4, 1.6], requires_grad=True)]
    assert Call(Node("cat", ([Ref(1), Ref(0)], 1)))(values, False).tolist() == [[2, 2, 1, 1]]
    assert Call(Node("add.Tensor", (Ref(1), Ref(0)), {"alpha": 3}))(values, False).tolist() == [[5, 5]]
    rounding = Call(Node("round", (Ref(2),)))
    assert not rounding(values, False).sum().backward()
    assert values[2].grad.tolist() == [0, 0]  # type: ignore[union-attr]
    rounding(values, True).sum().backward()
    assert values[2].grad.tolist() == [1, 1]  # type: ignore[union-attr]
    dropping = Call(Node("dropout", (Ref(0), 1.0, False)))
    assert [dropping(values, training).sum().item() for training in (False, True, False)] == [2, 0, 2]
