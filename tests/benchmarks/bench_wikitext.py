"""Recall, noise and speed of the wikitext cleaner on the hybrid dump, whose wanted text is known.

python tests/benchmarks/bench_wikitext.py [FOLDER]
"""

import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_prep.wiki.dump import PageReader, read_site, split  # noqa: E402
from data_prep.wiki.wikitext import clean  # noqa: E402

GRAM = 6  # characters


def measure(folder: Path, repeats: int = 5) -> dict[str, Any]:
    """Returns recall and noise by character 6-grams, and megabytes of wikitext a second on one core."""
    rows = map(json.loads, (folder / "hybrid5.xml.truth.jsonl").read_text(encoding="utf-8").splitlines())
    truth = {str(row["id"]): row["paras"] for row in rows}
    dump = next(folder.glob("*multistream.xml.bz2"))
    site = read_site(dump)
    pages = [page for part in split(dump, 1 << 30) for page in PageReader(dump, part, site) if page.id in truth]
    num_bytes = sum(len(page.text.encode()) for page in pages)
    seconds = []
    texts: list[str] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        texts = [clean(page.text, page.title) for page in pages]
        seconds.append(time.perf_counter() - begin)
    wanted = found = unwanted = num_grams = 0
    for page, text in zip(pages, texts, strict=True):
        paragraphs = [re.sub(r"\s+", " ", paragraph) for paragraph in truth[page.id]]
        out = _grams(re.sub(r"\s+", " ", text))
        of_page, of_truth = set(out), {gram for paragraph in paragraphs for gram in _grams(paragraph)}
        wanted += sum(map(len, paragraphs))
        found += sum(_covered(paragraph, of_page) for paragraph in paragraphs)
        num_grams += len(out)
        unwanted += sum(gram not in of_truth for gram in out)
    return {
        "pages": len(pages),
        "megabytes": round(num_bytes / 1e6, 2),
        "recall": round(found / wanted, 4),
        "noise": round(unwanted / num_grams, 4),
        "mb_per_second": round(num_bytes / 1e6 / statistics.median(seconds), 1),
        "mb_per_second_range": [round(num_bytes / 1e6 / s, 1) for s in (max(seconds), min(seconds))],
    }


def _grams(text: str) -> list[str]:
    return [text[i : i + GRAM] for i in range(len(text) - GRAM + 1)]


def _covered(text: str, grams: set[str]) -> int:
    covered = [False] * len(text)
    for i, gram in enumerate(_grams(text)):
        if gram in grams:
            covered[i : i + GRAM] = [True] * GRAM
    return sum(covered)


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data" / "kowiki-hybrid"
    print(json.dumps(measure(place)))
