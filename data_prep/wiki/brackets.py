"""Resolves `{{...}}` and `[[...]]` inside out, in one pass over the brackets and linear time."""

import re
from dataclasses import dataclass, field
from operator import itemgetter

from data_prep.wiki.templates import Table, arguments_of, normal_name

HOLE = "\ufdd2"  # stands where an inline template was dropped, so that parentheses around it can be repaired
MAX_DEPTH = 200  # MediaWiki stops at 100 levels; deeper brackets are an attack or noise
WINDOW_CHARS = 200  # how far the line around a template is looked at

# Most links hold no other markup; this alternative in C does nine of ten of them.
_SIMPLE_LINK = re.compile(r"\[\[(?:[^\[\]{}|\n:]*\|)?([^\[\]{}|\n:#]+)\]\]")
_PARAMETER = re.compile(r"\{\{\{[^{}|]*(?:\|([^{}|]*))?\}\}\}")
# Of three closing brackets the first belongs to an external link or to the text.
_TOKEN = re.compile(r"\{\{|\}\}|\[\[|\]\](?!\](?!\]))")
_HANGUL = re.compile(r"[가-힣]")
_LIST_MARK = re.compile(r"^[*#:;]+\s*$")
_INTERWIKI = re.compile(
    r"(?:[a-z]{2,3}|simple|zh-[a-z-]+|be-[a-z-]+|roa-[a-z]+|bat-smg|cbk-zam|fiu-vro|map-bms|nds-nl)"
)
_MEDIA = {"파일", "그림", "file", "image", "미디어", "media", "분류", "category"}
_PIPE_TRICK = re.compile(r"^:?(?:[^:()]*:)?(.*?)(?: ?\([^()]*\)|, .*)?$", re.DOTALL)
_PARSER_TEXT = {"formatnum", "lc", "uc", "lcfirst", "ucfirst", "nowrap", "숫자서식"}
_TITLE = {"pagename", "문서이름", "fullpagename", "전체문서이름", "basepagename", "subpagename"}


@dataclass
class Page:
    """What a page's templates need to know, and what they leave: counts of unknown names."""

    table: Table
    title: str = ""
    unknown: dict[str, list] = field(default_factory=dict)  # name -> [count, first example]


@dataclass
class _Frame:
    is_template: bool
    start: int
    pieces: list[str]


def resolve(text: str, page: Page) -> str:
    """Returns the text with templates replaced by the table's rules and links by their labels.

    Damage of an unbalanced bracket ends with its line.
    """
    text = _SIMPLE_LINK.sub(itemgetter(1), text)
    if "{{{" in text:
        text = _PARAMETER.sub(r"\1", text)
    root: list[str] = []
    frames: list[_Frame] = []
    pieces, position = root, 0
    for token in _TOKEN.finditer(text):
        pieces.append(text[position : token.start()])
        position = token.end()
        bracket = token[0]
        if bracket in ("{{", "[["):
            if len(frames) < MAX_DEPTH:
                frames.append(_Frame(bracket == "{{", token.start(), []))
                pieces = frames[-1].pieces
        elif _closes(frames, bracket == "}}", position):
            while frames[-1].is_template != (bracket == "}}"):
                _give_up(frames, root, text)
            frame = frames.pop()
            pieces = frames[-1].pieces if frames else root
            content = "".join(frame.pieces)
            if not frame.is_template:
                pieces.append(_link(content))
            elif (value := _template(content, text, frame.start, position, page)) != HOLE:
                pieces.append(value)
            elif not _is_block(text, frame.start, position):
                pieces.append(HOLE)
    pieces.append(text[position:])
    while frames:
        _give_up(frames, root, text)
    return "".join(root)


def _closes(frames: list[_Frame], is_template: bool, position: int) -> bool:
    """Whether a closing bracket has a partner; a link's must be near, as a link is one line."""
    if not frames:
        return False
    if frames[-1].is_template == is_template:
        return True
    partner = next((frame for frame in reversed(frames) if frame.is_template == is_template), None)
    return partner is not None and (is_template or position - partner.start < 5000)


def _give_up(frames: list[_Frame], root: list[str], text: str) -> None:
    """Takes the top frame as unclosed: its markup goes, the text after its first line stays."""
    frame = frames.pop()
    content = _damaged("".join(frame.pieces), frame.is_template, _before(text, frame.start) == "")
    (frames[-1].pieces if frames else root).append(content)


def _damaged(content: str, is_template: bool, starts_line: bool) -> str:
    line, newline, rest = content.partition("\n")
    if is_template and "|" not in line:
        # A short first line is the name of a template that goes on below; a long one is text.
        line = "" if (starts_line and len(line) <= 30) else line
    elif not is_template and _is_media(line):
        line = ""
    else:
        line = line.rpartition("|")[2]
    return line + newline + rest


def _is_block(text: str, start: int, end: int) -> bool:
    return (start == 0 or text[start - 1] == "\n") and text[end : end + 1] in ("", "\n")


def _before(text: str, start: int) -> str:
    window = text[max(0, start - WINDOW_CHARS) : start]
    return window.rpartition("\n")[2].strip()


def _template(content: str, text: str, start: int, end: int, page: Page) -> str:
    raw_name, *parts = content.split("|")
    name = normal_name(raw_name)
    if not name or "\n" in raw_name.strip() or len(name) > 150:
        return _damaged(content, True, _before(text, start) == "")
    known, template_format = page.table.find(name)
    if not known and ":" in name:
        function, _, argument = raw_name.strip().partition(":")
        return argument.strip() if function.strip().casefold() in _PARSER_TEXT else ""
    if known:
        if template_format is not None:
            return template_format.render(arguments_of(parts)) or HOLE
        # A known inline template that spans a paragraph lost its end, and a later one closed it.
        lost = "\n\n" in content and _before(text, start) != ""
        return _damaged(content, True, False) if lost else HOLE
    if name in _TITLE:
        return page.title
    if "\n\n" in content and _before(text, start):
        return _damaged(content, True, False)
    return _unknown(name, parts, text, (start, end), page)


def _unknown(name: str, parts: list[str], text: str, span: tuple[int, int], page: Page) -> str:
    """Keeps the last unnamed argument if it is Korean text within a line; else leaves a hole."""
    start, end = span
    entry = page.unknown.setdefault(name[:80], [0, text[start : min(end, start + 120)]])
    entry[0] += 1
    last = arguments_of(parts)["last"] if parts else ""
    if not _HANGUL.search(last) or "\n" in last:
        return HOLE
    before, after = _before(text, start), text[end : end + WINDOW_CHARS].partition("\n")[0].strip()
    return last if before or after or _LIST_MARK.match(before) else HOLE


def _is_media(target: str) -> bool:
    prefix, colon, _ = target.partition(":")
    return bool(colon) and prefix.strip().casefold() in _MEDIA


def _link(content: str) -> str:
    target, bar, label = content.partition("|")
    target = target.strip()
    if _is_media(target):
        return ""
    if "\n\n" in content:
        return _damaged(content, False, False)
    if ":" in target and _INTERWIKI.fullmatch(target.partition(":")[0].strip()):
        return ""
    if bar and not label.strip():
        trick = _PIPE_TRICK.match(target[:300])
        return trick[1] if trick else target
    return label if bar else target.lstrip(":#")
