"""Networks in forms that run outside PyTorch."""

from featherweight.exporting.gated import GatedSession
from featherweight.exporting.onnx import to_onnx
from featherweight.exporting.staged import StagedSession

__all__ = ["GatedSession", "StagedSession", "to_onnx"]
