"""`python -m data_prep stats DIR...`: what a corpus holds, by source and language, and how long its documents are."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_prep.document import CorpusError
from data_prep.lineage import whole_file
from data_prep.tokens.batches import document_counts, read_batches
from data_prep.tokens.shard_format import kind_of
from data_prep.tokens.shards import Shards

COUNTS = ("documents", "tokens", "characters", "utf8_bytes", "hangul_syllables")
HEADINGS = ("documents", "tokens", "characters", "bytes", "bytes/token", "tokens/char", "tokens/syllable")
BAR_WIDTH = 40
MAX_BARS = 20
Row = dict[str, Any]


def add_parser(subparsers: Any) -> None:
    """Adds the command `stats`."""
    parser = subparsers.add_parser("stats", help="count what token shards or documents hold", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="token shards, or documents-*.jsonl.zst")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw counts and lengths")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the counts and returns 0.

    Raises:
        CorpusError: a folder holds neither token shards nor documents, or the folders are not all of one kind.
    """
    facts = gather(args.folders)
    if args.plot:
        plot(args.plot, facts)
    print(json.dumps(facts, ensure_ascii=False, indent=2) if args.json else "\n".join(table(facts)))
    return 0


def gather(folders: Sequence[Path]) -> dict[str, Any]:
    """Returns `read` (what was read, in words), `rows` by source and language, `total`, and `lengths`."""
    kinds = {folder: kind_of(folder) for folder in folders}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{folder}: {kind}" for folder, kind in kinds.items())
        raise CorpusError(f"folders of two kinds ({told}); one kind is expected; ask for one after the other")
    is_tokens = kinds[folders[0]] == "token shards"
    rows, lengths = _of_shards(folders) if is_tokens else _of_documents(folders)
    read = "counts from each manifest.json, lengths from the .idx files" if is_tokens else "every document"
    rows = [row | ratios(row) for row in rows]
    total: Row = {name: _sum(row.get(name) for row in rows) for name in COUNTS}
    total |= ratios(total)
    if any(row["tokens_per_hangul_syllable"] is None for row in rows):
        total["tokens_per_hangul_syllable"] = None
    unit = "tokens" if is_tokens else "characters"
    return {
        "folders": list(map(str, folders)),
        "read": read,
        "rows": rows,
        "total": total,
        "lengths": describe_lengths(lengths, unit),
    }


def ratios(row: Row) -> dict[str, float | None]:
    """Returns bytes a token, tokens a character and tokens a Hangul syllable, where the counts are known.

    The last is left out for text of which Hangul makes up less than a third: it would tell of the rest.
    """
    hangul, characters = row.get("hangul_syllables"), row.get("characters")
    is_korean = bool(hangul and characters and 3 * hangul >= characters)
    pairs = {
        "bytes_per_token": ("utf8_bytes", "tokens"),
        "tokens_per_character": ("tokens", "characters"),
        "tokens_per_hangul_syllable": ("tokens" if is_korean else "", "hangul_syllables"),
    }
    values = {name: (row.get(over), row.get(under)) for name, (over, under) in pairs.items()}
    return {name: round(a / b, 3) if a and b else None for name, (a, b) in values.items()}


def describe_lengths(lengths: npt.NDArray[np.int64], unit: str) -> dict[str, Any]:
    """Returns mean, quantiles and a histogram of document lengths; each bin is twice as wide as the one before."""
    bins = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = np.bincount(bins)
    first = int(np.flatnonzero(counts)[0])
    histogram = [
        {"from": 2**number, "below": 2 ** (number + 1), "documents": int(counts[number])}
        for number in range(first, len(counts))
    ]
    quantiles = {f"p{q}": int(np.quantile(lengths, q / 100, method="inverted_cdf")) for q in (5, 50, 95)}
    return {
        "unit": unit,
        "mean": round(float(lengths.mean()), 1),
        **quantiles,
        "longest": int(lengths.max()),
        "histogram": histogram,
    }


def table(facts: dict[str, Any]) -> list[str]:
    """Returns the lines of the printed table and the histogram."""
    rows = [[row["source"] or "-", row["lang"] or "-", *_cells(row)] for row in facts["rows"]]
    rows.append(["all", "", *_cells(facts["total"])])
    grid = [["source", "lang", *HEADINGS], *rows]
    widths = [max(len(row[column]) for row in grid) for column in range(len(grid[0]))]
    lines = [", ".join(facts["folders"]) + f"  ({facts['read']})"]
    for row in grid:
        left = [text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True)]
        right = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join([*left, *right]).rstrip())
    lengths = facts["lengths"]
    told = ", ".join(f"{name} {lengths[name]:,}" for name in ("mean", "p5", "p50", "p95", "longest"))
    lines += ["", f"document length in {lengths['unit']}: {told}"]
    most = max(item["documents"] for item in lengths["histogram"])
    for item in lengths["histogram"]:
        bar = "#" * -(-item["documents"] * BAR_WIDTH // most)
        lines.append(f"{item['from']:>12,} -{item['below'] - 1:>12,}  {item['documents']:>12,}  {bar}".rstrip())
    return lines


def plot(path: Path, facts: dict[str, Any]) -> None:
    """Draws the counts by source and language, and the length histogram, as a PNG file."""
    from matplotlib.figure import Figure  # a second to import

    unit = facts["lengths"]["unit"]
    rows = sorted(facts["rows"], key=lambda row: row[unit] or 0)[-MAX_BARS:]
    labels = [f"{row['source']} {row['lang']}".strip() or "-" for row in rows]
    names = ["documents", unit, *(["bytes_per_token"] if unit == "tokens" else [])]
    figure = Figure(figsize=(10, 4.5 + 0.25 * len(rows)), layout="constrained")
    grid = figure.add_gridspec(2, len(names), height_ratios=[1 + 0.25 * len(rows), 3.5])
    for column, name in enumerate(names):
        axes = figure.add_subplot(grid[0, column])
        bars = axes.barh(range(len(rows)), [row[name] or 0 for row in rows])
        axes.bar_label(bars, [_cell(row[name]) for row in rows], padding=3)
        axes.set(title=name.replace("_", " "), xticks=[])
        axes.set_yticks(range(len(rows)), [] if column else labels)
        axes.margins(x=0.6)
    axes = figure.add_subplot(grid[1, :])
    histogram = facts["lengths"]["histogram"]
    axes.bar([f"{item['from']:,}" for item in histogram], [item["documents"] for item in histogram], width=0.9)
    axes.set(xlabel=f"length in {unit}, from", ylabel="documents")
    axes.tick_params(axis="x", rotation=45)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


def _of_shards(folders: Sequence[Path]) -> tuple[list[Row], npt.NDArray[np.int64]]:
    opened = [Shards.open(folder) for folder in folders]
    rows: dict[tuple[str, str], Row] = {}
    for shards in opened:
        whole = {"documents": shards.num_documents, "tokens": shards.num_tokens}
        for item in shards.manifest.get("sources") or [{"source": "", "lang": "", **whole}]:
            row = rows.setdefault((item["source"], item["lang"]), {})
            for name in COUNTS:
                row[name] = item.get(name) if not row else _sum([row.get(name, 0), item.get(name)])
    return _sorted(rows), np.concatenate([shards.document_lengths for shards in opened])


def _of_documents(folders: Sequence[Path]) -> tuple[list[Row], npt.NDArray[np.int64]]:
    paths = [path for folder in folders for path in sorted(folder.glob("documents-*.jsonl.zst"))]
    rows: dict[tuple[str, str], Row] = {}
    lengths: list[int] = []
    with tqdm(total=sum(path.stat().st_size for path in paths), unit="B", unit_scale=True, disable=None) as bar:
        for batch in read_batches(paths, 0):
            origins, counts = document_counts(batch)
            for origin, (utf8_bytes, characters, syllables) in zip(origins, counts.tolist(), strict=True):
                row = rows.setdefault(origin, dict.fromkeys(COUNTS, 0) | {"tokens": None})
                row["documents"] += 1
                row["utf8_bytes"] += utf8_bytes
                row["characters"] += characters
                row["hangul_syllables"] += syllables
                lengths.append(characters)
            bar.update(batch.num_read - bar.n)
    if not lengths:
        raise CorpusError(f"{folders[0]} holds 0 documents; at least one is expected; give another folder")
    return _sorted(rows), np.array(lengths, dtype=np.int64)


def _sorted(rows: dict[tuple[str, str], Row]) -> list[Row]:
    return [{"source": key[0], "lang": key[1], **row} for key, row in sorted(rows.items())]


def _sum(values: Any) -> int | None:
    known = list(values)
    return None if None in known else sum(known)


def _cells(row: Row) -> list[str]:
    names = ("documents", "tokens", "characters", "utf8_bytes")
    parts = ("bytes_per_token", "tokens_per_character", "tokens_per_hangul_syllable")
    return [_cell(row.get(name)) for name in (*names, *parts)]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
