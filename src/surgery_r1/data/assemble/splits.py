"""No sequence lies in two splits: neighbouring frames are alike."""

from __future__ import annotations

from collections import defaultdict

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.records import Frame, Sample


class Splits:
    """Looks at samples one after the other."""

    def __init__(self) -> None:
        self._of_sequence: dict[tuple[str, str], str] = {}
        self._of_image: dict[bytes, set[str]] = defaultdict(set)

    def add(self, sample: Sample, frame: Frame) -> None:
        """Take a sample and its frame into account.

        Raises:
            SurgeryR1Error: when its sequence has been in another split.
        """
        split = self._of_sequence.setdefault((sample.source, sample.sequence), sample.split)
        if split != sample.split:
            raise SurgeryR1Error(
                f"{sample.source}/{sample.sequence} is in several splits: {', '.join(sorted((split, sample.split)))}",
                fix="neighbouring frames are alike: keep a sequence in one split",
            )
        self._of_image[bytes.fromhex(frame.sha256)].add(sample.split)

    @property
    def images_in_two(self) -> int:
        """Number of images whose very bytes occur in more than one split."""
        return sum(len(found) > 1 for found in self._of_image.values())
