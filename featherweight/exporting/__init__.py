"""Networks in forms that run outside PyTorch."""

from featherweight.exporting.onnx import to_onnx
from featherweight.exporting.staged import StagedSession

__all__ = ["StagedSession", "to_onnx"]
