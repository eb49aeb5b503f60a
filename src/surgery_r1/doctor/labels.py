"""The dataset: what ``data check`` finds, as far as a minute allows."""

from __future__ import annotations

from itertools import islice

from surgery_r1.data.dataset import Dataset, changes, label_changes
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.doctor.check import Found, Wrong, check
from surgery_r1.doctor.patient import Patient
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.predict import evenly_spaced

#: Images whose bytes are compared with what they were.
_IMAGES = 300


@check(
    "labels",
    proves="Records, images and label files are what they were when the dataset was built, and no image is in two "
    "splits.",
    fix="surgery-r1 data check DATASET shows all of it; build the dataset again",
)
def labels(patient: Patient) -> Found:
    dataset, told = patient.dataset, ""
    for split in ("train", "dev"):
        if not dataset.split(split):
            raise Wrong(
                f"no {split} questions", "build the dataset from label folders that hold the training sequences"
            )
    frames = evenly_spaced(list(dataset.frames.values()), _IMAGES)
    shown = Dataset(dataset.root, dataset.image_root, dataset.manifest, {}, {f.frame_id: f for f in frames})
    issues = list(islice(changes(shown), 100))
    try:
        issues += islice(label_changes(dataset), 100)
    except SurgeryR1Error as error:
        told = f"; label files not compared: {error.what}"
    if issues:
        raise Wrong(_words(issues), issues[0].fix)
    both = dataset.manifest.get("images_in_two_splits", 0)
    if both:
        raise Wrong(f"{both} images occur in more than one split", "leave one of the copies out and build it again")
    left = sum(dataset.manifest.get("skipped", {}).values())
    counts = {split: len(dataset.split(split)) for split in ("train", "dev", "val", "test")}
    said = f"{len(dataset.samples):,} questions, {len(frames)} of {len(dataset.frames):,} images compared{told}"
    return Found(said + (f"; {left} questions were left out" if left else ""), {**counts, "left_out": left})


def _words(issues: list[ValidationIssue]) -> str:
    first = issues[0]
    more = f", and {len(issues) - 1} more" if len(issues) > 1 else ""
    return f"{first.path}: {first.what} ({first.value}){more}"
