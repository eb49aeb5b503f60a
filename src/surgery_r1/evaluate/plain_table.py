"""A table of texts, written as Markdown, as LaTeX, or (by the report) as HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: What LaTeX takes for a command, and how it is written as text.
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"${sign}$" for sign in "<>|"},
    "±": r"$\pm$",
}


@dataclass(frozen=True, slots=True)
class PlainTable:
    """A table.

    Attributes:
        title: what it shows.
        head: heading of each column; the first one is of the names of rows.
        rows: cells of each row, as many as there are headings.
        notes: sentences below it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """With its title as a heading, its notes as paragraphs."""
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (self.head, *self.rows)]
        lines.insert(1, "|---|" + "---:|" * (len(self.head) - 1))
        return "\n\n".join([f"## {self.title}", "\n".join(lines), *self.notes]) + "\n"

    def latex(self) -> str:
        """A ``table`` without any package; every text is escaped.

        >>> print(PlainTable("50 % of x_1", ["", "Acc"], [["a & b", ".5"]]).latex())
        \\begin{table*}
        \\caption{50 \\% of x\\_1}
        \\footnotesize
        \\begin{tabular}{lr}
        \\hline
         & Acc \\\\
        \\hline
        a \\& b & .5 \\\\
        \\hline
        \\end{tabular}
        \\end{table*}
        <BLANKLINE>
        """
        head, *rows = (" & ".join(latex_text(cell) for cell in row) + r" \\" for row in (self.head, *self.rows))
        lines = [
            r"\begin{table*}",
            rf"\caption{{{latex_text(self.title)}}}",
            r"\footnotesize",
            rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}",
            *(r"\hline", head, r"\hline", *rows, r"\hline"),
            r"\end{tabular}",
            *(rf"\par {latex_text(note)}" for note in self.notes),
            r"\end{table*}",
        ]
        return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """A text as LaTeX writes it, without commands in it.

    >>> latex_text("joint@.5 ± 3 %, f_score")
    'joint@.5 $\\\\pm$ 3 \\\\%, f\\\\_score'
    """
    # A row that begins with a bracket would be taken for the option of the line break before it.
    escaped = re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], text)
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped
