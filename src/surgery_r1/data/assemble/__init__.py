"""From label folders to a dataset folder: samples, frames, training rows, manifest and card."""

from surgery_r1.data.assemble.build import build_dataset

__all__ = ["build_dataset"]
