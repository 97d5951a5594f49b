"""Programs as bytes: what is decoded equals what was encoded, and nothing else is ever accepted."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featherweight.errors import FormatError, RequestError
from featherweight.graph.capture import capture
from featherweight.graph.program import Input, Node, Program, Ref, TensorSpec
from featherweight.packaging.cursor import Cursor, string, varint
from featherweight.packaging.program import decode_program, encode_program
from featherweight.packaging.tensors import DTYPES
from featherweight.packaging.value import MOST_VALUES, ValueReader, encode_value

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.sampled_from([*DTYPES, torch.strided, torch.sparse_coo, torch.channels_last, torch.preserve_format]),
    st.sampled_from([torch.device("cpu"), torch.device("cuda:1"), torch.device("meta")]),
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)


def values(refs: int) -> st.SearchStrategy[Any]:
    """Arguments of a node that may refer to the first `refs` values."""
    leaves = st.one_of(LEAVES, st.builds(Ref, st.integers(0, refs - 1))) if refs else LEAVES
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=2)
        ),
        max_leaves=6,
    )


@st.composite
def programs(draw: st.DrawFn) -> Program:
    shapes = st.lists(st.one_of(st.none(), st.integers(0, 2**40)), max_size=4).map(tuple)
    names = st.lists(st.text("ab.é", min_size=1, max_size=6), unique=True, max_size=4)
    inputs = tuple(Input(name, draw(shapes), draw(st.sampled_from([*DTYPES]))) for name in draw(names))
    kinds = st.sampled_from(["parameter", "buffer", "constant"])
    tensors = tuple(TensorSpec(name, draw(kinds)) for name in draw(names))
    nodes: list[Node] = []
    for _ in range(draw(st.integers(0, 4))):
        known = len(inputs) + len(tensors) + len(nodes)
        args = tuple(draw(st.lists(values(known), max_size=3)))
        kwargs = draw(st.dictionaries(KEYS, values(known), max_size=2))
        nodes.append(Node(draw(st.sampled_from(["relu", "add.Tensor", "conv2d", "py.getitem"])), args, kwargs, "user.py:1"))
    return Program(inputs, tensors, tuple(nodes), draw(values(len(inputs) + len(tensors) + len(nodes))))


def same(a: Any, b: Any) -> bool:
    """Equal and of the same types at every depth: True is not 1, and (1,) is not [1]."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return bool(a == b)


@given(programs())
def test_programs_come_back(program: Program) -> None:
    found = decode_program(encode_program(program))
    assert found == program
    assert same([(n.args, dict(n.kwargs)) for n in found.nodes], [(n.args, dict(n.kwargs)) for n in program.nodes])
    assert same(found.output, program.output)
    assert encode_program(found) == encode_program(program)


@given(programs(), st.data())
def test_damaged_programs_are_refused_or_decode(program: Program, data: st.DataObject) -> None:
    coded = bytearray(encode_program(program))
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode_program(bytes(coded))
    except FormatError:
        return
    encode_program(found)  # what is accepted is a program like any other


def test_nan_in_an_argument_comes_back() -> None:
    program = Program((), (), (Node("relu", (float("nan"),)),), None)
    assert same(decode_program(encode_program(program)).nodes[0].args, (float("nan"),))


def test_origins_are_not_stored() -> None:
    node = Node("relu", (Ref(0),), {}, "secret.py:3")
    program = Program((Input("x", (None,), torch.float32),), (), (node,), Ref(1))
    assert b"secret" not in encode_program(program)
    assert decode_program(encode_program(program)).nodes[0].origin == ""


def test_a_lenet_takes_less_than_200_bytes_and_a_repeated_layer_next_to_nothing() -> None:
    lenet = nn.Sequential(
        *[nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)],
        *[nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)],
    )
    program = capture(lenet, torch.zeros(2, 1, 28, 28))
    assert len(encode_program(program)) < 200
    layers = [capture(nn.Sequential(*[nn.Linear(3, 3) for _ in range(n)]), torch.zeros(2, 3)) for n in (8, 9)]
    longer, shorter = (len(encode_program(program)) for program in layers[::-1])
    assert longer - shorter <= 4 + len("8.weight") + 2 + len("bias") + 2


def test_bytes_spelled_out() -> None:
    inputs = (Input("x", (None, 3), torch.float32),)
    tensors = (TensorSpec("w", "parameter"), TensorSpec("wb", "buffer"))
    nodes = (Node("linear", (Ref(0), Ref(1), Ref(2))), Node("relu", (Ref(3),)), Node("relu", (Ref(4),)))
    assert encode_program(Program(inputs, tensors, nodes, (Ref(5),))).hex(" ") == " ".join(
        [
            "02 00 01 77 05 01 62",  # 2 tensors: 0 shared, parameter, "w"; 1 shared, buffer, "b"
            "01 01 78 00 02 00 04",  # 1 input: "x", float32, 2 axes: the batch, 3
            "02 06 6c 69 6e 65 61 72 04 72 65 6c 75",  # 2 operations: "linear", "relu"
            "02 00 0b 03 00 00 00 0d 00 01 0b 01 00 0d 00",  # 2 calls: operation, a tuple of holes, an empty dict
            "03 00 03 00 00 01 01 01 01",  # 3 nodes: call 0 on 3 back, the next two tensors; twice call 1 on 1 back
            "0b 01 00 01",  # the output: a tuple of a hole: 1 back
        ]
    )


def head(*, op: str = "relu") -> bytes:
    """No tensors, an input "x" of no axes, one operation."""
    return b"\0" + b"\1\1x\0\0" + b"\1" + string(op)


CALL = bytes.fromhex("01 00 0b 01 00 0d 00")


@pytest.mark.parametrize(
    ("coded", "message"),
    [
        (head(op="__import__") + CALL + b"\0\1", "not allowed"),
        (head(op="py.eval") + CALL + b"\0\1", "not allowed"),
        (head(op="from_file") + CALL + b"\0\1", "not allowed"),
        (head(op="a b.c\0") + CALL + b"\0\1", "not allowed"),
        (head() + CALL + b"\1\0\2" + b"\0\1", "does not exist yet"),  # before the first value
        (head() + CALL + b"\1\0\0" + b"\0\1", "does not exist yet"),  # the next tensor, where there is none
        (head() + CALL + b"\1\1\1" + b"\0\1", "entry 1 of a table of 1"),
        (head() + bytes.fromhex("01 01 0b 01 00 0d 00"), "entry 1 of a table of 1"),
        (head() + bytes.fromhex("01 00 0c 01 00 0d 00"), "not a tuple"),
        (head() + bytes.fromhex("01 00 0b 01 0e 0d 00"), "no value has the tag 14"),
        (head() + bytes.fromhex("01 00 0b 00 0d 02 00 01 00 01"), "same key twice"),
        (head() + bytes.fromhex("01 00 0b 01 07 63 0d 00"), "no dtype"),
        (head() + bytes.fromhex("01 00 0b 01 08 02 0d 00"), "entry 2 of a table of 2"),
        (head() + bytes.fromhex("01 00 0b 01 0a 01 78 0d 00"), "no device"),
        (head() + b"\1\0\x0b\1" + b"\x0b\1" * 17 + b"\0\x0d\0", "nest 16 deep"),
        (head() + CALL + b"\xff\xff\x7f", "cannot hold"),
        (b"\2\0\1w\0\1w" + head()[1:], "two tensors 'w'"),
        (b"\1\4\1w", "shares 1 bytes"),
        (b"\1\3\1w\0\0", "entry 3 of a table of 3"),
        (b"\1\0\2\xc3\x28\0\0", "not UTF-8"),
        (b"\1\0" + string("w" * 1025), "may take 1024 bytes"),
        (b"\0\2\1x\0\0\1x\0\0" + bytes(9), "distinct names"),
        (b"\0\1\1x\0\x21" + bytes(40), "at most 32 axes"),
        (head() + CALL + b"\0\1" + b"\0", "1 bytes too many"),
    ],
)
def test_hostile_programs_are_refused(coded: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        decode_program(coded)


def test_a_big_call_made_by_many_nodes_is_refused() -> None:
    call = b"\1\0\x0b\1" + b"\x0c" + varint(9000) + b"\1" * 9000 + b"\x0d\0"
    with pytest.raises(FormatError, match="too long"):
        decode_program(head() + call + varint(1000) + b"\0" * 1000 + b"\1")


def test_too_many_values_are_refused_as_they_are_read() -> None:
    coded = b"\x0c" + varint(MOST_VALUES) + b"\1" * MOST_VALUES
    with pytest.raises(FormatError, match="holds too much"):
        ValueReader(Cursor(coded, "test")).read()


@pytest.mark.parametrize(
    "value",
    [object(), 2**63, 1j, torch.zeros(2), {1, 2}, torch.per_tensor_affine, "\ud800"],
    ids=lambda value: type(value).__name__,
)
def test_what_a_file_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(RequestError):
        encode_value([value])


def test_an_input_of_an_unknown_dtype_is_refused() -> None:
    program = Program((Input("x", (), torch.bits8),), (), (), Ref(0))
    with pytest.raises(RequestError, match="bits8"):
        encode_program(program)


def test_kwargs_keep_their_order() -> None:
    node = Node("add.Tensor", (), {"b": 1, "a": Ref(0)})
    program = Program((Input("x", (), torch.float32),), (), (node,), None)
    assert list(decode_program(encode_program(program)).nodes[0].kwargs) == ["b", "a"]
    swapped = dataclasses.replace(node, kwargs={"a": Ref(0), "b": 1})
    assert decode_program(encode_program(dataclasses.replace(program, nodes=(swapped,)))).nodes[0] == node
