"""Recall and noise of extracted text against articles whose wanted paragraphs are known."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

GRAM = 6  # characters


def read_truth(path: Path) -> dict[str, list[str]]:
    """Returns page id -> wanted paragraphs, from lines of `{"id", "paras"}`."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {str(row["id"]): row["paras"] for row in rows}


def recall_and_noise(texts: Mapping[str, str], truth: Mapping[str, list[str]]) -> tuple[float, float]:
    """Returns the share of wanted characters found and the share of the text's 6-grams that nobody wanted.

    Args:
        texts: page id -> extracted text; a page of `truth` that is missing here counts as not found.
        truth: page id -> wanted paragraphs; other pages of `texts` are left out.
    """
    wanted = found = unwanted = num_grams = 0
    for page_id, paragraphs in truth.items():
        paragraphs = [re.sub(r"\s+", " ", paragraph) for paragraph in paragraphs]
        out = _grams(re.sub(r"\s+", " ", texts.get(page_id, "")))
        of_page, of_truth = set(out), {gram for paragraph in paragraphs for gram in _grams(paragraph)}
        wanted += sum(map(len, paragraphs))
        found += sum(_covered(paragraph, of_page) for paragraph in paragraphs)
        num_grams += len(out)
        unwanted += sum(gram not in of_truth for gram in out)
    return found / wanted, unwanted / max(num_grams, 1)


def _grams(text: str) -> list[str]:
    return [text[i : i + GRAM] for i in range(len(text) - GRAM + 1)]


def _covered(text: str, grams: set[str]) -> int:
    covered = [False] * len(text)
    for i, gram in enumerate(_grams(text)):
        if gram in grams:
            covered[i : i + GRAM] = [True] * GRAM
    return sum(covered)
