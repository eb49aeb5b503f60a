"""The one exception that users see: what was wrong, where, and what to do."""

from __future__ import annotations


class SurgeryR1Error(Exception):
    """An error in the user's input or surroundings, shown as one line without a traceback.

    Args:
        what: what was wrong, with the value found.
        fix: what to do about it.
        where: ``path`` or ``path:line``.

    >>> str(SurgeryR1Error("unknown key 'lr_rate'", where="tiny.toml:3", fix="did you mean 'lr'?"))
    "tiny.toml:3: unknown key 'lr_rate'; did you mean 'lr'?"
    """

    def __init__(self, what: str, *, fix: str | None = None, where: str | None = None) -> None:
        self.what = what
        self.fix = fix
        self.where = where
        super().__init__((f"{where}: " if where else "") + what + (f"; {fix}" if fix else ""))
