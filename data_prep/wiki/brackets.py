"""Resolves `{{...}}` and `[[...]]` inside out, in one pass over the brackets and linear time."""

import re
from dataclasses import dataclass, field
from operator import itemgetter

from data_prep.wiki.formats import arguments_of
from data_prep.wiki.functions import call_function, magic_word
from data_prep.wiki.repair import HOLE
from data_prep.wiki.templates import Table, normal_name
from data_prep.wiki.unknown import MAX_CALL_CHARS, UnknownTemplates

MAX_DEPTH = 200  # MediaWiki stops at 100 levels; deeper brackets are an attack or noise
MAX_PARAMETER_DEPTH = 5  # `{{{a|{{{b|c}}}}}}` belongs to a template's own page, an article holds it by mistake
WINDOW_CHARS = 200  # how far the line around a template is looked at

# Most links hold no other markup; this alternative in C does nine of ten of them.
_SIMPLE_LINK = re.compile(r"\[\[(?:[^\[\]{}|\n:]*+\|)?(?! )([^\[\]{}|\n:#]++)(?<! )\]\]")
_PARAMETER = re.compile(r"\{\{\{[^{}|]*(?:\|([^{}|]*))?\}\}\}")
# Of three closing brackets the first belongs to an external link or to the text.
_TOKEN = re.compile(r"\{\{|\}\}|\[\[|\]\](?!\](?!\]))")
_HANGUL = re.compile(r"[가-힣]")
_INTERWIKI = re.compile(
    r"(?:[a-z]{2,3}|simple|zh-[a-z-]+|be-[a-z-]+|roa-[a-z]+|bat-smg|cbk-zam|fiu-vro|map-bms|nds-nl)"
)
_PROJECTS = {"w", "wikt", "s", "q", "b", "n", "v", "voy", "wikipedia", "wiktionary", "wikisource", "commons", "c"}
_MEDIA_NAMES = """
    파일 그림 사진 이미지 미디어 분류 file image media category datei bild kategorie fichier catégorie archivo imagen
    ファイル 画像 カテゴリ 文件 图像 圖像 檔案 分类 分類 файл immagine plik bestand
"""
_MEDIA = frozenset(_MEDIA_NAMES.split())
_MEDIA_NAME = re.compile(r"\.(?:jpe?g|png|svg|gif|tiff?|webp|bmp|xcf|og[gav]|webm|mp[34]|wav|flac|mid)$", re.IGNORECASE)
_PIPE_TRICK = re.compile(r"^:?(?:[^:()]*:)?(.*?)(?: ?\([^()]*\)|, .*)?$", re.DOTALL)
# `{{!}}` and `{{=}}` are no separators of the call they stand in; the real characters come back at the end.
_PIPE, _EQUALS = "\ufdd3", "\ufdd4"
_ESCAPES = {"!": _PIPE, "=": _EQUALS, "!!": _PIPE * 2, "(!": "{" + _PIPE, "!)": _PIPE + "}", "!-": _PIPE + "-"}
_UNESCAPES = str.maketrans({_PIPE: "|", _EQUALS: "="})


@dataclass
class Page:
    """What a page's templates need to know, and what they leave: counts of unknown names.

    Attributes:
        timestamp: ISO 8601, of the revision; `{{CURRENTYEAR}}` and its like are taken from it.
    """

    table: Table
    title: str = ""
    unknown: UnknownTemplates = field(default_factory=UnknownTemplates)
    timestamp: str = ""


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
    for _ in range(MAX_PARAMETER_DEPTH):
        if "{{{" not in text:
            break
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
            else:
                pieces.append(_template(content, text, frame.start, position, page))
    pieces.append(text[position:])
    while frames:
        _give_up(frames, root, text)
    text = "".join(root)
    return text.translate(_UNESCAPES) if _PIPE in text or _EQUALS in text else text


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
    elif not is_template and line.partition(":")[0].strip().casefold() in _MEDIA:
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
    if name in _ESCAPES:
        return _ESCAPES[name]
    known, template_format = page.table.find(name)
    if not known and ":" in name:
        return call_function(raw_name.strip(), parts) or HOLE
    if known:
        if template_format is not None:
            if template_format.is_aside and _in_parentheses(text, start):
                return HOLE
            return template_format.render(arguments_of(parts)) or HOLE
        # A known inline template that spans a paragraph lost its end, and a later one closed it.
        lost = "\n\n" in content and _before(text, start) != ""
        return _damaged(content, True, False) if lost else HOLE
    if not parts and (value := magic_word(raw_name.strip(), page.title, page.timestamp)) is not None:
        return value or HOLE
    if name in page.table.countries and (raw_name.strip().isupper() or not raw_name.isascii()):
        # A country's name by its own is a navigation box at the end of an article.
        return HOLE if _is_block(text, start, end) else page.table.countries[name]
    if "\n\n" in content and _before(text, start):
        return _damaged(content, True, False)
    return _unknown(name, parts, text, (start, end), page)


def _in_parentheses(text: str, start: int) -> bool:
    before = _before(text, start)
    return before.count("(") > before.count(")")


def _unknown(name: str, parts: list[str], text: str, span: tuple[int, int], page: Page) -> str:
    """Keeps the last unnamed argument if it is Korean text within a line; else leaves a hole."""
    start, end = span
    page.unknown.add(name[:80], text[start : min(end, start + MAX_CALL_CHARS)], page.title)
    last = arguments_of(parts)["last"] if parts else ""
    if not _HANGUL.search(last) or "\n" in last:
        return HOLE
    before, after = _before(text, start), text[end : end + WINDOW_CHARS].partition("\n")[0].strip()
    return last if before or after else HOLE


def _link(content: str) -> str:
    if _PIPE in content:
        content = content.replace(_PIPE, "|")
    target, bar, label = content.partition("|")
    target = target.strip()
    prefix, colon, _ = target.partition(":")
    prefix = prefix.strip()
    if (colon and prefix.casefold() in _MEDIA) or (bar and _MEDIA_NAME.search(target) and "|" in label):
        return HOLE
    if "\n\n" in content:
        return _damaged(content, False, False)
    if colon and _INTERWIKI.fullmatch(prefix):
        return ""
    if bar and not label.strip():
        trick = _PIPE_TRICK.match(target[:300])
        return trick[1] if trick else target
    if bar:
        return label.rpartition("|")[2] or label
    return _shown(target)


def _shown(target: str) -> str:
    """Returns what a link without a label reads: `:en:Foo` and `wikt:Foo` name another wiki's page `Foo`."""
    prefix, colon, name = target.lstrip(":#").partition(":")
    if colon and name and (prefix in _PROJECTS or (target[0] == ":" and _INTERWIKI.fullmatch(prefix))):
        return name
    return target.lstrip(":#")
