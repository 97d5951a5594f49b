"""Quantization: fewer bits for each weight."""

from featherweight.quantization.attraction import Attraction
from featherweight.quantization.aware import learnable_steps, tune_quantized
from featherweight.quantization.binary import Binary, binarize_weights, clip_weights, real_weights
from featherweight.quantization.clusters import cluster_weights
from featherweight.quantization.codebook import Codebook
from featherweight.quantization.entropy import EntropyPlan, plan_entropy, quantize_entropy
from featherweight.quantization.grid import FoundGrid, Grid, find_grid
from featherweight.quantization.kmeans import kmeans
from featherweight.quantization.mixed import BitSensitivity, allocate_bits, scan_bits
from featherweight.quantization.product import product_quantize
from featherweight.quantization.rate_loss import RateLoss
from featherweight.quantization.storage import cast_weights
from featherweight.quantization.ternary import Ternary, TrainedTernary, ternarize_weights
from featherweight.quantization.uniform import UniformOptions, quantize_uniform
from featherweight.quantization.xnor import compare_with_bits

__all__ = [
    "Attraction",
    "Binary",
    "BitSensitivity",
    "Codebook",
    "EntropyPlan",
    "FoundGrid",
    "Grid",
    "RateLoss",
    "Ternary",
    "TrainedTernary",
    "UniformOptions",
    "allocate_bits",
    "binarize_weights",
    "cast_weights",
    "clip_weights",
    "cluster_weights",
    "compare_with_bits",
    "find_grid",
    "kmeans",
    "learnable_steps",
    "plan_entropy",
    "product_quantize",
    "quantize_entropy",
    "quantize_uniform",
    "real_weights",
    "scan_bits",
    "ternarize_weights",
    "tune_quantized",
]
