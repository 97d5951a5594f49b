"""Lossless packing of a network into one small file: see SPEC.md for the format."""

from __future__ import annotations

from featherweight.packaging.reader import decode, inspect, load, load_tensors
from featherweight.packaging.writer import encode, save, save_tensors

__all__ = ["decode", "encode", "inspect", "load", "load_tensors", "save", "save_tensors"]
