"""Tables of text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], num_words: int) -> list[str]:
    """Returns rows of cells as lines: the first `num_words` columns to the left, the others, numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < num_words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
