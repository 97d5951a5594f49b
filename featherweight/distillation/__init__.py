"""Knowledge distillation: small networks that learn from large ones."""

from featherweight.distillation.distill import Lesson, distill, teach
from featherweight.distillation.features import Features, map_evenly
from featherweight.distillation.losses import (
    decoupled_loss,
    dist_loss,
    label_smoothing_loss,
    logits_loss,
    soft_loss,
)
from featherweight.distillation.memory import RememberedTeacher
from featherweight.distillation.shrink import shrink
from featherweight.distillation.teachers import Ensemble, average_weights

__all__ = [
    "Ensemble",
    "Features",
    "Lesson",
    "RememberedTeacher",
    "average_weights",
    "decoupled_loss",
    "dist_loss",
    "distill",
    "label_smoothing_loss",
    "logits_loss",
    "map_evenly",
    "shrink",
    "soft_loss",
    "teach",
]
