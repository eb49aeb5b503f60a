"""From label folders to a dataset folder: samples, frames, training rows, manifest and card."""

from surgery_r1.build.dataset_folder import build_dataset

__all__ = ["build_dataset"]
