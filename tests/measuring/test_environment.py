"""The record of where a measurement was taken."""

from __future__ import annotations

import getpass
import json
import platform
import socket
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import featherweight
from featherweight.measuring import environment


def test_versions_are_those_that_run() -> None:
    got = environment()
    assert got["python"] == platform.python_version()
    assert got["featherweight"] == featherweight.__version__
    assert (got["numpy"], got["torch"], got["onnxruntime"]) == (np.__version__, torch.__version__, onnxruntime.__version__)
    assert got["torch_threads"] == torch.get_num_threads()


def test_nothing_names_the_machine() -> None:
    text = json.dumps(environment())
    assert socket.gethostname() not in text
    assert getpass.getuser() not in text
    assert str(Path.cwd()) not in text
    assert str(Path.home()) not in text
