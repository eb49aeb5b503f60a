"""The one exception that users see: what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SurgeryR1Error(Exception):
    """An error in the user's input or surroundings, shown as one line without a traceback.

    Args:
        what: what was wrong, with the value found.
        fix: what to do about it.
        where: ``path`` or ``path:line``, as a text or a path.

    >>> str(SurgeryR1Error("unknown key 'lr_rate'", where="tiny.toml:3", fix="did you mean 'lr'?"))
    "tiny.toml:3: unknown key 'lr_rate'; did you mean 'lr'?"
    """

    def __init__(self, what: str, *, fix: str | None = None, where: object = None) -> None:
        self.what = what
        self.fix = fix
        self.where = None if where is None else str(where)
        super().__init__((f"{where}: " if where else "") + what + (f"; {fix}" if fix else ""))


class OtherProcessFailed(SurgeryR1Error):
    """Another process of the same run has failed, which ends this one too.

    Args:
        what: what is known of it here.
        tell: whether this process is to say so; the one that failed says why.
    """

    def __init__(self, what: str, *, tell: bool = False) -> None:
        self.tell = tell
        super().__init__(what)


@contextmanager
def explained(what: str, *, where: object, fix: str) -> Iterator[None]:
    """Any error inside the block becomes a :class:`SurgeryR1Error`: ``what``, then its type and its first line.

    For what libraries raise where a file is torn or a network is away, of types that they do not promise.

    >>> with explained("cannot be read", where="model.safetensors", fix="copy it again"):
    ...     raise KeyError("weight")
    Traceback (most recent call last):
    surgery_r1.errors.SurgeryR1Error: model.safetensors: cannot be read (KeyError: 'weight'); copy it again
    """
    try:
        yield
    except SurgeryR1Error:
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        raise SurgeryR1Error(f"{what} ({type(error).__name__}: {first})", where=where, fix=fix) from error
