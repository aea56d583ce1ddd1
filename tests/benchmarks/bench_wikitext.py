"""Recall, noise and speed of the wikitext cleaner on the hybrid dump, whose wanted text is known.

python tests/benchmarks/bench_wikitext.py [FOLDER]
"""

import bz2
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from lxml import etree

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_prep.wiki.wikitext import clean  # noqa: E402
from tests.benchmarks.truth import read_truth, recall_and_noise  # noqa: E402


def measure(folder: Path, repeats: int = 5) -> dict[str, Any]:
    """Returns recall and noise by character 6-grams, and megabytes of wikitext per second of one core's time."""
    truth = read_truth(folder / "hybrid5.xml.truth.jsonl")
    pages = {id_: page for id_, *page in _pages(next(folder.glob("*multistream.xml.bz2"))) if id_ in truth}
    num_bytes = sum(len(text.encode()) for _, text in pages.values())
    seconds = []
    texts: dict[str, str] = {}
    for _ in range(repeats):
        begin = time.process_time()
        texts = {id_: clean(text, title) for id_, (title, text) in pages.items()}
        seconds.append(time.process_time() - begin)
    recall, noise = recall_and_noise(texts, truth)
    return {
        "pages": len(pages),
        "megabytes": round(num_bytes / 1e6, 2),
        "recall": round(recall, 4),
        "noise": round(noise, 4),
        "mb_per_second": round(num_bytes / 1e6 / statistics.median(seconds), 1),
        "mb_per_second_range": [round(num_bytes / 1e6 / s, 1) for s in (max(seconds), min(seconds))],
    }


def _pages(path: Path) -> list[tuple[str, str, str]]:
    """Returns id, title and wikitext of a small dump's pages."""
    with bz2.open(path) as file:
        root = etree.parse(file, etree.XMLParser(huge_tree=True, resolve_entities=False)).getroot()
    text = "{*}revision/{*}text"
    return [(p.findtext("{*}id"), p.findtext("{*}title"), p.findtext(text) or "") for p in root.iter("{*}page")]


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data" / "kowiki-hybrid"
    print(json.dumps(measure(place)))
