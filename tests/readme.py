"""The commands that the READMEs show, in their order."""

import re
from pathlib import Path

from tests.support import ROOT

DOCUMENTS = [
    "README.md",
    "README.ko.md",
    "data_prep/README.md",
    "slurm/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
]
PROGRAM = re.compile(
    r"(python|tune|torchrun|tensorboard|pytest|pip|hf|sbatch|source|export|cp|touch|bzcat|vllm|curl) \S"
    r"|\w+=\$\(|make( [A-Z]+=\S+)? [\w-]+$"
)
"""How a line of a shell begins."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
INDENTED = re.compile(r"(?:\A|\n)\n((?: {4}.*\n)+)")


def read(document: str) -> str:
    """Returns the text of a document."""
    return (ROOT / document).read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """Returns what is shown in shell blocks, indented blocks and code in a line, comments and forms with … left out."""
    found = [(m.start(), m[2]) for m in FENCE.finditer(text) if m[1] in ("bash", "sh")]
    rest = FENCE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]).replace("\n    ", "\n"), text)
    found += [(m.start(), m[1]) for pattern in (INDENTED, INLINE) for m in pattern.finditer(rest)]
    lines = [line.strip() for _, block in sorted(found) for line in block.replace("\\\n", " ").splitlines()]
    plain = [re.sub(r"\s{2,}#.*$", "", line) for line in lines]
    return [line for line in plain if PROGRAM.match(line) and "…" not in line and "COMMAND" not in line]


def headings(text: str) -> list[int]:
    """Returns the levels of the headings."""
    return [len(m[1]) for m in re.finditer(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)]


def table_numbers(text: str) -> list[list[str]]:
    """Returns the numbers of each row of each table, code left out, smallest text first: languages order words."""
    rows = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    return [sorted(re.findall(r"\d+(?:[.,]\d+)*", INLINE.sub("", row))) for row in rows]


def links(document: str) -> list[Path]:
    """Returns where the relative links and pictures of a document lead."""
    found = re.findall(r"""\]\(([^)#:\s]+)(?:#[\w-]+)?\)|src(?:set)?="([^":]+)\"""", read(document))
    return [(ROOT / document).parent / (one or other) for one, other in found]
