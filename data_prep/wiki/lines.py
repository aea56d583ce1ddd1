"""What is decided line by line: footer sections, tables, list marks, headings and hatnotes."""

import re
from functools import lru_cache
from typing import Literal

from data_prep.wiki.repair import HOLE

Headings = Literal["plain", "kowikitext"]
HEADING_EDGE = "\ufdd6"  # a space at the edge of a heading, which must outlive the trimming of lines

# Names of sections without running text, spaces removed.
_FOOTER_NAMES = """
    같이보기 함께보기 같이읽기 같이읽을거리 관련항목 관련문서 관련글 관련사이트 관련웹사이트 관련자료 관련도서
    관련서적 관련문헌 관련기사 각주 주석 주해 미주 내용주 참조주 참조 참조문헌 참조자료 외부참조 참고항목
    참고문서 참고문헌 참고자료 참고서적 참고도서 참고 참고링크 참고사이트 참고웹사이트 참고기사 참고사항및출처
    외부링크 외부사이트 외부자료 외부문서 바깥고리 바깥링크 바깥쪽고리 외부고리 외부연결 링크 관련링크 공식링크
    출처 인용 인용문헌 인용자료 문헌 읽을거리 더읽어보기 더읽기 더읽을거리  추가문헌 추천문헌
    추천도서 둘러보기 갤러리 사진갤러리 그림갤러리 그림모음 사진모음 사진첩 연결고리
    seealso references reference referencelist notes note footnotes footnote endnotes externallinks externallink
    externalsources externalmedia furtherreading additionalreading suggestedreading recommendedreading bibliography
    sources primarysources secondarysources generalsources citations inlinecitations citedsources
    citedworks workscited literaturecited gallery imagegallery photogallery notesandreferences
    referencesandnotes generalreferences explanatorynotes explanatoryfootnotes weblinks links relatedarticles
    relatedlinks relatedpages relatedtopics otherwebsites furtherinformation
"""
FOOTERS = frozenset(_FOOTER_NAMES.split())

MAX_FOOTER_CHARS = 100

_HEADING = re.compile(r"\n=[^\n]*=[ \t]*(?![^\n])")  # begins with a literal, to which `re` skips
_NO_NAME = re.compile(r"<[^<>]*>|'{2,}|[\s_:]|\ufdd0\d+\ufdd1|\[\[|\]\]")
_AND = re.compile(r"및|·|,|/|&|and|(?<=[가-힣])[와과](?=[가-힣])")
_TABLE_MARK = re.compile(
    rf"^[ \t:*#{HOLE}]*(?:</?(?:div|center|small|span|p)\b[^<>\n]*>[ \t]*){{0,2}}(\{{\||\|\}}(?!\}}))",
    re.MULTILINE | re.IGNORECASE,
)
_STRAY_TABLE = re.compile(r"\{\|(?=[ \n]|$)|(?<=[ \n])\|\}(?!\})")
# Cells and parameters that stand outside any table or template lost theirs.
_ORPHAN = re.compile(r"\s*(?:\|(?:[-+}| ]|$|[^|\n]{0,60}=)|\|\|)")
_LIST_SIGNS = ("*", "#", ":", ";")
_LIST_MARKS = re.compile(r"[*#:;]+[ \t]*")
# A note to the reader: in italics, or indented and about another page.
_ITALIC_NOTE = re.compile(
    r"하십시오|하세요|바랍니다|에 관한 (?:것|글|문서)|동음이의|다른 뜻|이 문서는|"
    r"[Ff]or other|[Tt]his article|[Ss]ee also|[Mm]ain article"
)
_INDENTED_NOTE = re.compile(
    r"(?:문서|항목|문단)[를을]? (?:참고|참조|보[십세])|(?:문서|문단|절|항목)의 (?:본문|주 문서)[은는]|"
    r"^:+ *(?:본문|주 문서|참고|참조|더 보기) ?:|^:+ *(?:[Ss]ee also|[Mm]ain article|[Ff]or other uses)\b"
)


def heading(line: str) -> tuple[int, str]:
    """Returns level (1-6) and name of a heading line such as `== 역사 ==`; level 0 for another line."""
    return _short_heading(line) if len(line) <= MAX_FOOTER_CHARS else _parse_heading(line)


def _parse_heading(line: str) -> tuple[int, str]:
    line = line.rstrip()
    name = line.strip("= \t")
    if not name or line[0] != "=" or line[-1] != "=":
        return 0, ""
    left = len(line) - len(line.lstrip("="))
    right = len(line) - len(line.rstrip("="))
    return min(left, right, 6), name


_short_heading = lru_cache(maxsize=10_000)(_parse_heading)  # the same few names stand in most articles


def drop_footers(text: str) -> str:
    """Returns the text without sections such as `각주` or `References` and their subsections."""
    out: list[str] = []
    text = "\n" + text
    position, dropping = 1, 0  # the level of the section being dropped, 0 for none
    for match in _HEADING.finditer(text):
        level, name = heading(match[0][1:])
        if not level or (dropping and level > dropping):
            continue
        if not dropping:
            out.append(text[position : match.start() + 1])
        dropping = level if len(name) <= MAX_FOOTER_CHARS and _is_footer(name) else 0
        position = match.start() + 1
    if not dropping:
        out.append(text[position:])
    return "".join(out)


@lru_cache(maxsize=10_000)
def _is_footer(name: str) -> bool:
    name = _NO_NAME.sub("", name).casefold()
    return name in FOOTERS or all(part in FOOTERS for part in _AND.split(name))


def drop_tables(text: str) -> str:
    """Returns the text without `{| ... |}`, nested ones included.

    An unclosed table loses only the lines that look like rows, up to the first other one.
    """
    if "{|" not in text and "|}" not in text:
        return text
    marks = list(_TABLE_MARK.finditer(text))
    if not marks:
        return text
    open_marks: list[re.Match[str]] = []
    spans: list[tuple[int, int]] = []
    for mark in marks:
        if mark[1] == "{|":
            open_marks.append(mark)
        elif open_marks:
            spans.append((open_marks.pop().start(), mark.end()))
    rows_end = 0
    for mark in open_marks:
        if mark.start() >= rows_end:
            rows_end = _rows_end(text, mark.end())
            spans.append((mark.start(), rows_end))
    out: list[str] = []
    position = 0
    for start, end in sorted(spans):
        if end > position:
            out.append(text[position : max(start, position)])
            position = end
    out.append(text[position:])
    text = "".join(out)
    return _STRAY_TABLE.sub("", text) if "{|" in text or "|}" in text else text


def _rows_end(text: str, position: int) -> int:
    while True:
        end = text.find("\n", position)
        if end < 0:
            return len(text)
        if text[end + 1 : end + 2] not in ("|", "!") and text[end + 1 : end + 3] != "{|":
            return end
        position = end + 1


def lay_out(text: str, headings: Headings) -> str:
    """Returns plain lines: no heading, list or indent marks, no hatnotes, no heading without text.

    Paragraphs and headings are separated by one blank line, items of a list by a newline.
    """
    out: list[str] = []
    pending: list[tuple[int, str]] = []  # headings no text has followed yet
    for line in text.split("\n"):
        first = line[:1]
        if first == "=":
            level, name = heading(line.rstrip(f"{HOLE} "))
            if level:
                while pending and pending[-1][0] >= level:
                    pending.pop()
                pending.append((level, name))
                continue
        line = _body_line(line, first)
        if not line or line.isspace() or (HOLE in line and not line.strip(f"{HOLE} ")):
            if first not in _LIST_SIGNS:  # an item without text leaves no gap in its list
                out.append("")
            continue
        for level, name in pending:
            out += ["", _heading(name, level, headings), ""] if name else []
        pending.clear()
        out.append(line)
    return "\n".join(out)


def _heading(name: str, level: int, headings: Headings) -> str:
    if headings == "plain":
        return name
    return f"{HEADING_EDGE}{'= ' * level}{name}{' =' * level}{HEADING_EDGE}"


def _body_line(line: str, first: str) -> str:
    """Returns a line without its marks; empty if it holds no running text."""
    if first in _LIST_SIGNS:
        if first == ":" and (("''" in line and _ITALIC_NOTE.search(line)) or _INDENTED_NOTE.search(line)):
            return ""
        line = _LIST_MARKS.sub("", line, count=1)
    elif first == " ":
        line = line[1:].rstrip()
    elif first == "-" and line.startswith("----"):
        line = line.lstrip("-")
    elif first == "'" and line.startswith("''") and line.rstrip().endswith("''") and _ITALIC_NOTE.search(line):
        return "" if line.count("''") == 2 else line
    elif first == "=" and not line.strip("= "):
        return ""
    return "" if first in ("|", " ", "!") and _ORPHAN.match(line) else line
