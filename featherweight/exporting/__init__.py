"""Networks in forms that run outside PyTorch."""

from featherweight.exporting.onnx import to_onnx

__all__ = ["to_onnx"]
