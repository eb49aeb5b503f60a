"""ResponseCache of a teacher on disk, by the content of the request, so that none is paid for twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from surgery_r1._util.files import dump_json
from surgery_r1.errors import SurgeryR1Error


@dataclass(frozen=True, slots=True)
class TeacherResponse:
    """What a teacher answered.

    Attributes:
        text: of the reply; empty when there was none.
        finish: why it ended: ``stop``, ``length`` (cut off), ``content_filter``, or ``refused`` where the request was.
        prompt_tokens, completion_tokens: as the server counted them, 0 where it did not.
        sent_to: where frame or annotations went, see ``TeacherWriter.facts``.
    """

    text: str
    finish: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    sent_to: str = ""


class ResponseCache:
    """An append-only file of replies, one JSON object a line. One process writes it at a time.

    Args:
        path: made when it is missing. A last line torn by a kill is cut off.

    Raises:
        SurgeryR1Error: when another process has it, a line is damaged, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._places: dict[bytes, tuple[int, int]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk did not take must not be written later, in the wrong place.
            self._file = path.open("a+b", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SurgeryR1Error("another build is using these replies", where=str(path), fix="wait for it") from None
        except OSError as error:
            raise SurgeryR1Error(
                f"cannot keep replies: {error.strerror}", where=str(path), fix="check the path"
            ) from None
        self._index()

    def _index(self) -> None:
        self._file.seek(0)
        at = 0
        # Read with a buffer of its own: line by line an unbuffered file is slow.
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    os.truncate(self._file.fileno(), at)
                    break
                try:
                    key, _ = _parse(line)
                except (ValueError, KeyError, TypeError):
                    fix = "delete the line; it will be asked for again"
                    raise SurgeryR1Error("damaged reply", where=f"{self.path}:{number}", fix=fix) from None
                self._places[key] = (at, len(line))
                at += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> TeacherResponse | None:
        """The reply to a request, None when it has not been made."""
        with self._lock:
            place = self._places.get(bytes.fromhex(key))
            if place is None:
                return None
            line = os.pread(self._file.fileno(), place[1], place[0])
        return _parse(line)[1]

    def put(self, key: str, reply: TeacherResponse) -> None:
        """Keep a reply; it is on disk when this returns.

        Raises:
            SurgeryR1Error: when the disk is full; what was kept before stays.
        """
        line = (dump_json({"key": key, **asdict(reply)}) + "\n").encode()
        with self._lock:
            at = self._file.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._file.fileno(), line[written:])
                os.fsync(self._file.fileno())
            except OSError as error:
                # What is half written would be in the way of what comes next.
                with contextlib.suppress(OSError):
                    os.truncate(self._file.fileno(), at)
                raise SurgeryR1Error(
                    f"a reply cannot be kept: {error.strerror}",
                    where=str(self.path),
                    fix="free some space and run again; what was kept is not asked for again",
                ) from None
            self._places[bytes.fromhex(key)] = (at, len(line))

    def close(self) -> None:
        """Let other processes have the file."""
        self._file.close()


def _parse(line: bytes) -> tuple[bytes, TeacherResponse]:
    data = json.loads(line)
    return bytes.fromhex(data.pop("key")), TeacherResponse(**data)
