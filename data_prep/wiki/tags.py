"""HTML and extension tags: what is dropped, what is kept as it stands, what ends a line."""

import re

from data_prep.wiki.characters import decode
from data_prep.wiki.formats import SUPERSCRIPTS

# Noncharacters stand for protected text and for the place of a block tag; they are taken out of the input first.
OPEN, CLOSE, _BLOCK_MARK = "\ufdd0", "\ufdd1", "\ufdd5"
PROTECTED = re.compile(f"{OPEN}(\\d+){CLOSE}")

_RAW_TAGS = {"nowiki", "math", "chem", "ce", "pre", "code", "syntaxhighlight", "source"}
_DROP_TAGS = (
    "ref|references|gallery|timeline|imagemap|score|graph|mapframe|maplink|templatedata|templatestyles|inputbox|"
    "categorytree|hiero|includeonly|indicator|style|script|section|rp"
)
_TAG = re.compile(rf"<(/?)({'|'.join(sorted(_RAW_TAGS))}|{_DROP_TAGS})(?=[\s/>])([^<>]*)>", re.IGNORECASE)
_ATTRIBUTES = r"(?:\s[^<>]*=[^<>]*|[\s/]*)>"
_INLINE = re.compile(
    r"</?(?:abbr|b|bdi|bdo|big|cite|data|del|dfn|em|font|i|ins|kbd|langconvert|mark|noinclude|onlyinclude|phonos|q|rb|rbc|rt|"
    rf"rtc|ruby|s|samp|section|small|span|strike|strong|sub|sup|time|tt|u|var|wbr){_ATTRIBUTES}",
    re.IGNORECASE,
)
_BLOCK = re.compile(
    r"</?(?:address|blockquote|caption|center|dd|div|dl|dt|h[1-6]|hr|li|ol|poem|table|tbody|tfoot|thead|tr|ul)"
    rf"{_ATTRIBUTES}",
    re.IGNORECASE,
)
_PARAGRAPH = re.compile(rf"</?p{_ATTRIBUTES}", re.IGNORECASE)
_CELL = re.compile(rf"</?t[dh]{_ATTRIBUTES}", re.IGNORECASE)
_BLOCK_MARKS = re.compile(rf"\n?(?:{_BLOCK_MARK}[ \t]*\n?)+")
_BREAK = re.compile(r"<[ /]{0,3}br\b[^<>]*>", re.IGNORECASE)
_SUP = re.compile(r"<sup(?:\s[^<>]*)?>([^<>\n]{1,40})</sup\s*>", re.IGNORECASE)
_DIGITS = re.compile(r"[+\-−]?\d{1,4}")
_POWER = re.compile(r"[+\-−]?(?:[nkmijpqrstxyzNTαβγθλμπ]|\d+[a-z]|[a-z0-9]+(?: ?[+\-−*/·] ?[a-z0-9]+)+)")
_RUBY = re.compile(r"<rt[^<>]*>([^<>]*)</rt>", re.IGNORECASE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_NOWIKI = re.compile(r"</?nowiki\s*/?>", re.IGNORECASE)
_GALLERY_LINE = re.compile(
    r"[ \t]*(?:\n|[^\n<]{0,300}\.(?:jpe?g|png|svg|gif|tiff?|og[gv]|webm)\b[^\n]*)", re.IGNORECASE
)


def take_tags(text: str, kept: list[str]) -> str:
    """Returns the text without references, galleries and their like; code and mathematics move to `kept`."""
    tokens = list(_TAG.finditer(text))
    last_end = {token[2].lower(): token.start() for token in tokens if token[1]}
    out: list[str] = []
    position = index = 0
    while index < len(tokens):
        token, index = tokens[index], index + 1
        if token.start() < position:
            continue
        out.append(text[position : token.start()])
        position = token.end()
        name = token[2].lower()
        if token[1] or token[3].endswith("/"):
            continue
        partner = _partner(tokens, index, name) if last_end.get(name, -1) >= position else None
        is_closed = partner is not None and bool(tokens[partner][1])
        if is_closed and name == "ref":
            is_closed = _BLANK_LINE.search(text, position, tokens[partner or 0].start()) is None
        if is_closed and partner is not None:
            if name in _RAW_TAGS:
                out.append(f"{OPEN}{len(kept)}{CLOSE}")
                kept.append(_raw(name, text[position : tokens[partner].start()]))
            position, index = tokens[partner].end(), partner + 1
        elif name not in _RAW_TAGS:
            limit = tokens[partner].start() if partner is not None and not tokens[partner][1] else len(text)
            position = _damage_end(name, text, position, limit)
    out.append(text[position:])
    return "".join(out)


def _partner(tokens: list[re.Match[str]], index: int, name: str) -> int | None:
    """Returns the index of the tag that ends `name`; for a reference also the next one's start."""
    for i in range(index, len(tokens)):
        token = tokens[i]
        if token[2].lower() == name and (token[1] or (name == "ref" and not token[3].endswith("/"))):
            return i
    return None


def _damage_end(name: str, text: str, position: int, limit: int) -> int:
    """Returns where the damage of an unclosed tag ends: with its line, its pictures or its paragraph."""
    if name in ("references", "rp", "section"):
        return position
    if name == "gallery":
        while (line := _GALLERY_LINE.match(text, position)) and line.end() > position:
            position = line.end()
        return position
    end = text.find("\n" if name == "ref" else "\n\n", position, limit)
    return end if end >= 0 else limit


def _raw(name: str, content: str) -> str:
    if name in ("math", "chem", "ce"):
        body = " ".join(decode(content).split())
        return (f"${body}$" if name == "math" else f"$\\ce{{{body}}}$") if body else ""
    content = decode(_NOWIKI.sub("", content))
    return content if name in ("nowiki", "code") else f"\n{content.strip(chr(10))}\n"


def break_lines(text: str) -> str:
    """Returns the text without HTML tags; block tags and `<br>` end a line, `<p>` a paragraph.

    An exponent keeps its height: 10<sup>6</sup> becomes 10⁶, e<sup>x</sup> e^x.
    """
    text = _BREAK.sub("\n", text)
    text = _PARAGRAPH.sub("\n\n", _BLOCK.sub(_BLOCK_MARK, text))
    if _BLOCK_MARK in text:
        text = _CELL.sub(" ", _BLOCK_MARKS.sub("\n", text))
    text = _SUP.sub(_exponent, text)
    return _INLINE.sub("", _RUBY.sub(r"(\1)", text))


def _exponent(match: re.Match[str]) -> str:
    content = match[1].replace("''", "").strip()
    if _DIGITS.fullmatch(content):
        return content.translate(SUPERSCRIPTS)
    before = match.string[match.start() - 1 : match.start()]
    if not _POWER.fullmatch(content) or not (before.isalnum() or before in (")", "]", "'")):
        return match[1]  # 1<sup>st</sup>, M<sup>me</sup>
    return f"^{content}" if len(content) == 1 else f"^({content})"
