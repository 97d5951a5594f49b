"""Quantization: fewer bits for each weight."""

from featherweight.quantization.clusters import Codebook, cluster_weights, kmeans

__all__ = ["Codebook", "cluster_weights", "kmeans"]
