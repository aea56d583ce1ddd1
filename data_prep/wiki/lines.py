"""What is decided line by line: footer sections, tables, list marks, headings and hatnotes."""

import re

# Names of sections without running text, spaces removed.
_FOOTER_NAMES = """
    같이보기 함께보기 같이읽기 같이읽을거리 관련항목 관련문서 각주 주석 주해 미주 내용주 참조주 참조
    참고문헌 참고자료 참고서적 참고 참고링크 참고사이트 참고사항및출처 외부링크 바깥고리 바깥링크 외부고리
    외부연결 링크 관련링크 출처 인용 인용문헌 문헌 읽을거리 더읽어보기 더읽을거리 추가문헌 둘러보기 갤러리
    사진갤러리 그림모음 사진모음 연결고리
    seealso references reference notes note footnotes externallinks externallink furtherreading bibliography
    sources citations workscited gallery notesandreferences referencesandnotes generalreferences
    explanatorynotes
"""
FOOTERS = frozenset(_FOOTER_NAMES.split())

_HEADING = re.compile(r"^=[^\n]*=[ \t]*$", re.MULTILINE)
_NO_NAME = re.compile(r"<[^<>]*>|'{2,}|[\s_:]|\ufdd0\d+\ufdd1")
_AND = re.compile(r"및|·|,|/|&|and|(?<=[가-힣])[와과](?=[가-힣])")
_TABLE_MARK = re.compile(r"^[ \t:*#]*(\{\||\|\}(?!\}))", re.MULTILINE)
# Cells and parameters that stand outside any table or template lost theirs.
_ORPHAN = re.compile(r"\s*(?:\|(?:[-+}| ]|$|[^|\n]{0,60}=)|\|\|)")
_LIST_MARKS = re.compile(r"[*#:;]+[ \t]*")
_HATNOTE = re.compile(
    r"하십시오|하세요|에 관한 (?:것|글|문서)|동음이의|다른 뜻|이 문서는|"
    r"[Ff]or other|[Tt]his article|[Ss]ee also|[Mm]ain article"
)


def heading_level(line: str) -> int:
    """Returns the level 1-6 of a heading line such as `== 역사 ==`, 0 for another line."""
    line = line.rstrip()
    if len(line) < 3 or line[0] != "=" or line[-1] != "=":
        return 0
    body = line.strip("=")
    if not body.strip():
        return 0
    left = len(line) - len(line.lstrip("="))
    right = len(line) - len(line.rstrip("="))
    return min(left, right, 6)


def heading_text(line: str) -> str:
    """Returns a heading line without its `=`."""
    level = heading_level(line)
    return line.rstrip()[level : len(line.rstrip()) - level].strip()


def drop_footers(text: str) -> str:
    """Returns the text without sections such as `각주` or `References` and their subsections."""
    out: list[str] = []
    position, dropping = 0, 0  # the level of the section being dropped, 0 for none
    for match in _HEADING.finditer(text):
        level = heading_level(match[0])
        if not level or (dropping and level > dropping):
            continue
        if not dropping:
            out.append(text[position : match.start()])
        dropping = level if _is_footer(heading_text(match[0])) else 0
        position = match.start()
    if not dropping:
        out.append(text[position:])
    return "".join(out)


def _is_footer(name: str) -> bool:
    name = _NO_NAME.sub("", name).casefold()
    return name in FOOTERS or all(part in FOOTERS for part in _AND.split(name))


def drop_tables(text: str) -> str:
    """Returns the text without `{| ... |}`, nested ones included.

    An unclosed table loses only the lines that look like rows, up to the first other one.
    """
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
    return "".join(out)


def _rows_end(text: str, position: int) -> int:
    while True:
        end = text.find("\n", position)
        if end < 0:
            return len(text)
        if text[end + 1 : end + 2] not in ("|", "!") and text[end + 1 : end + 3] != "{|":
            return end
        position = end + 1


def lay_out(text: str) -> str:
    """Returns plain lines: no heading, list or indent marks, no hatnotes, no heading without text.

    Paragraphs and headings are separated by one blank line, items of a list by a newline.
    """
    out: list[str] = []
    pending: list[tuple[int, str]] = []  # headings no text has followed yet
    for line in text.split("\n"):
        first = line[:1]
        if first == "=" and (level := heading_level(line)):
            while pending and pending[-1][0] >= level:
                pending.pop()
            pending.append((level, heading_text(line)))
            continue
        if first in ("*", "#", ":", ";"):
            if first == ":" and "''" in line and _HATNOTE.search(line):
                continue
            line = _LIST_MARKS.sub("", line, count=1)
        elif first == " ":
            line = line[1:].rstrip()
        elif first == "-" and line.startswith("----"):
            line = line.lstrip("-")
        if not line or line.isspace() or (first in ("|", " ", "!") and _ORPHAN.match(line)):
            out.append("")
            continue
        for _, name in pending:
            out += ["", name, ""] if name else []
        pending.clear()
        out.append(line)
    return "\n".join(out)
