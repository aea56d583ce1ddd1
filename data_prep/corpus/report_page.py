"""The HTML page of a cleaning report, with nothing loaded from elsewhere."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from data_prep.filters.measures import language

STYLE = Path(__file__).with_name("report.css")

REASONS = {
    "namespace": "a page of another namespace, such as a template or category",
    "redirect": "a redirect",
    "disambiguation": "a page that lists meanings of a name",
    "not_wikitext": "a page that is no wikitext",
    "no_text": "the text is null",
    "other_language": "another language than the rules are for",
    "empty": "nothing is left after cleaning",
    "too_short": "fewer characters than min_chars",
    "low_hangul": "too few of the letters are Hangul",
    "low_latin": "too few of the letters are Latin",
    "few_function_words": "too few of the commonest English words: another language, or no sentences",
    "damaged_characters": "characters lost in a broken encoding",
    "many_digits": "mostly numbers",
    "many_symbols": "too many symbols",
    "short_words": "words shorter than a language has, such as spaced letters",
    "long_words": "words longer than a language has, such as text without spaces",
    "leftover_markup": "wiki or HTML markup in the text",
    "mostly_list": "nearly only short lines that end no sentence",
    "repeated_lines": "lines stand several times in the document",
    "repeated_text": "passages stand several times in the document",
    "stub_family": "one of many documents that differ in name and numbers only",
    "duplicate": "the same text as an earlier document",
    "duplicate_id": "the same id as an earlier document",
}
CHANGES = {
    "invisible_characters": "control, zero-width and direction characters taken out",
    "odd_spaces": "no-break and other spaces made plain",
    "recomposed": "texts brought to NFC",
    "special_tokens": "literal special tokens defused",
    "pii_email": "e-mail addresses replaced",
    "pii_rrn": "resident registration numbers replaced",
    "pii_phone": "telephone numbers replaced",
}


def page(name: str, report: Mapping[str, Any]) -> str:
    """Returns the page about what `report.collect` returned."""
    ledger, counts = report["ledger"], report["counts"]
    sections = [
        _section("Why documents were dropped", _dropped(report)),
        _section("Length of the documents that stay", _lengths(report["lengths"])),
        _section("What was changed in the text", _changes(report["changes"])),
        _section("Samples of what was dropped", _samples(report)),
        _section("Templates the table does not know", _unknown(report)),
        _section("What could not be read", _losses(report["losses"])),
        _section("Settings", _json(report["settings"])) if report["settings"] else "",
    ]
    characters = f" They hold {counts['characters']:,} characters." if "characters" in counts else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: cleaning</title>\n"
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>Cleaning of {escape(name)}</h1>\n<p class="sum">{ledger["out"]:,} of {ledger["in"]:,} records stay'
        f" ({_percent(ledger['out'], ledger['in'])}).{characters}</p>\n"
        f"{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table that scrolls by itself; the first cell of a row is its name, the others are `<td>` elements."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "\n".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>' for name, *cells in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _cell(value: object) -> str:
    return f"<td>{value:,}</td>" if isinstance(value, int) else f"<td>{escape(str(value))}</td>"


def _text(value: str) -> str:
    return f'<td class="text">{escape(value)}</td>'


def _bar(number: int, of: int) -> str:
    return f'<td><span class="bar"><span style="width:{100 * number / max(of, 1):.1f}%"></span></span></td>'


def _percent(number: int, of: int) -> str:
    share = 100 * number / max(of, 1)
    return f"{share:.1f} %" if share >= 0.1 or not number else f"{share:.2g} %"


def _dropped(report: Mapping[str, Any]) -> str:
    ledger, characters = report["ledger"], report["dropped_characters"]
    rows = [
        [
            reason,
            _cell(number),
            _cell(_percent(number, ledger["in"])),
            _bar(number, ledger["in"]),
            _cell(characters[reason]) if reason in characters else _cell("–"),
            _text(REASONS.get(reason, "")),
        ]
        for reason, number in sorted(ledger["dropped"].items(), key=lambda item: (-item[1], item[0]))
    ]
    if not rows:
        return "<p>None was.</p>"
    head = ["Reason", "Records", "Share", "", "Characters", "Meaning"]
    note = "<p>Characters are counted after cleaning; records dropped before it have none.</p>"
    return _table("Why documents were dropped", head, rows) + note


def _lengths(lengths: Sequence[Mapping[str, int]]) -> str:
    if not lengths:
        return ""
    total = sum(row["documents"] for row in lengths)
    most = max((row["documents"] for row in lengths), default=0)
    ends = [f" – {row['from'] - 1:,}" for row in lengths[1:]] + [" and more"]
    rows = [
        [
            f"{row['from']:,}{end}",
            _cell(row["documents"]),
            _cell(_percent(row["documents"], total)),
            _bar(row["documents"], most),
        ]
        for row, end in zip(lengths, ends, strict=True)
        if row["documents"]
    ]
    return _table("Length of the documents", ["Characters", "Documents", "Share", ""], rows) if rows else ""


def _changes(changes: Mapping[str, int]) -> str:
    rows = [[name, _cell(number), _text(CHANGES.get(name, ""))] for name, number in changes.items()]
    return _table("What was changed", ["Change", "Count", "Meaning"], rows) if rows else ""


def _samples(report: Mapping[str, Any]) -> str:
    blocks = []
    for reason, samples in report["samples"].items():
        articles = "".join(
            f"<article>\n<h3>{escape(sample['title'] or sample['id'])}</h3>\n"
            + (f'<p class="why">{escape(sample["detail"])}</p>\n' if sample["detail"] else "")
            + f'<blockquote lang="{language(sample["text"])}">{escape(sample["text"])}</blockquote>\n</article>\n'
            for sample in samples
        )
        number = report["ledger"]["dropped"][reason]
        meaning = REASONS.get(reason, reason)
        blocks.append(
            f"<details>\n<summary>{escape(reason)} ({len(samples)} of {number:,})</summary>\n"
            f"<p>{escape(meaning[:1].upper() + meaning[1:])}.</p>\n{articles}</details>\n"
        )
    return "".join(blocks)


def _unknown(report: Mapping[str, Any]) -> str:
    rows = []
    for name, facts in report["unknown_templates"].items():
        example = next(iter(facts["examples"]), {"title": "", "call": ""})
        rows.append([name, _cell(facts["count"]), _text(example["call"]), _text(example["title"])])
    if not rows:
        return ""
    note = f"<p>The {len(rows)} most frequent of {report['num_unknown_templates']:,}; --templates takes a table.</p>"
    return _table("Unknown templates", ["Template", "Calls", "Example", "Page"], rows) + note


def _losses(losses: Sequence[Any]) -> str:
    return _json(losses) if losses else ""


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, ensure_ascii=False, indent=2))}</pre>"
