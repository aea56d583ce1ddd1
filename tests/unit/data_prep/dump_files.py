"""Small MediaWiki exports made for the tests of `dump`, `clean` and `__main__`."""

import bz2
from pathlib import Path
from xml.sax.saxutils import escape

HEADER = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="ko">\n  <siteinfo>\n'
    "    <sitename>위키백과</sitename>\n    <dbname>kowiki</dbname>\n"
    "    <base>https://ko.wikipedia.org/wiki/%EB%8C%80%EB%AC%B8</base>\n  </siteinfo>\n"
)
FOOTER = "</mediawiki>\n"


def page_xml(number: int, title: str, text: str, namespace: int = 0, redirect: bool = False) -> str:
    mark = "\n    <redirect title='x' />" if redirect else ""
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{namespace}</ns>\n    <id>{number}</id>{mark}\n"
        f"    <revision>\n      <id>{number + 1000}</id>\n      <timestamp>2024-01-02T03:04:05Z</timestamp>\n"
        f"      <model>wikitext</model>\n      <text xml:space='preserve'>{escape(text)}</text>\n"
        "    </revision>\n  </page>\n"
    )


def word(number: int) -> str:
    """A word of its own for each number; digits would make all articles one stub family."""
    return "낱말" + chr(0xAC00 + number % 11172)


def article(number: int) -> str:
    words = [word(number * 7 + i) for i in range(30)]
    sentences = " ".join(f"{number}번 문서의 {i}번째 문장은 [[{w}|{w}]]에 관한 것이다." for i, w in enumerate(words))
    return f"'''글 {number}'''은 시험 문서이다.{{{{없는 틀|{number}}}}} {sentences}\n\n== 각주 ==\n{{{{각주}}}}"


def pages(num_articles: int) -> list[str]:
    """Articles 1..n, then one of each kind that is dropped: 8 pages."""
    rows = [page_xml(n, f"글 {n}", article(n)) for n in range(1, num_articles + 1)]
    n = num_articles
    rows.append(page_xml(n + 1, "틀:가", "{{나}}", namespace=10))
    rows.append(page_xml(n + 2, "가", "#넘겨주기 [[나]]", redirect=True))
    rows.append(page_xml(n + 3, "나", "#REDIRECT [[다]]"))
    rows.append(page_xml(n + 4, "다", "다음을 뜻한다.\n* [[가]]\n{{동음이의}}"))
    rows.append(page_xml(n + 5, "라", "짧다."))
    rows.append(page_xml(n + 6, "마", article(1)))
    rows.append(page_xml(n + 7, "바", "This page has no Hangul at all. " * 20))
    rows.append(page_xml(n + 8, "사", "{{각주}}"))
    return rows


def write_multistream(path: Path, rows: list[str], pages_per_stream: int = 5) -> Path:
    streams = [
        HEADER,
        *("".join(rows[i : i + pages_per_stream]) for i in range(0, len(rows), pages_per_stream)),
        FOOTER,
    ]
    path.write_bytes(b"".join(bz2.compress(stream.encode()) for stream in streams))
    return path
