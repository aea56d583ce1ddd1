"""Plain text from wikitext: one pass per kind of markup, inside out, each in linear time.

Output: paragraphs and headings are separated by a blank line, list items by a newline. Headings and list items stand
as plain lines. Mathematics stands as `$...$`, code as it is. A literal special token `<|name|>` becomes `< |name| >`:
no tokenizer takes it for its own, and a reader still sees what was written.
"""

import html
import re
import unicodedata

from data_prep.wiki.brackets import HOLE, Page, resolve
from data_prep.wiki.lines import drop_footers, drop_tables, lay_out
from data_prep.wiki.templates import SUPERSCRIPTS, load_table

# Noncharacters stand for protected text; they are taken out of the input first.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_PROTECTED = re.compile(f"{_OPEN}(\\d+){_CLOSE}")

_RAW_TAGS = {"nowiki", "math", "chem", "ce", "pre", "code", "syntaxhighlight", "source"}
_DROP_TAGS = (
    "ref|references|gallery|timeline|imagemap|score|graph|mapframe|maplink|templatedata|templatestyles|inputbox|"
    "categorytree|hiero|includeonly|indicator|style|script|section|rp"
)
_TAG = re.compile(rf"<(/?)({'|'.join(sorted(_RAW_TAGS))}|{_DROP_TAGS})(?=[\s/>])([^<>]*)>", re.IGNORECASE)
_HTML = re.compile(
    r"</?(?:abbr|b|bdi|bdo|big|blockquote|center|cite|dd|del|dfn|div|dl|dt|em|font|h[1-6]|hr|i|ins|kbd|li|mark|noinclude|"
    r"onlyinclude|ol|p|poem|q|rb|rbc|rt|rtc|ruby|s|samp|small|span|strike|strong|sub|sup|table|tbody|td|tfoot|th|thead|"
    r"time|tr|tt|u|ul|var|wbr|data|section|br)(?:\s[^<>]*=[^<>]*|[\s/]*)>",
    re.IGNORECASE,
)
_BREAK = re.compile(r"<[ /]{0,3}br\b[^<>]*>", re.IGNORECASE)
_SUPERSCRIPT = re.compile(r"<sup[^<>]*>\s*([+\-−]?\d{1,4})\s*</sup>", re.IGNORECASE)
_RUBY = re.compile(r"<rt[^<>]*>([^<>]*)</rt>", re.IGNORECASE)
_HTML_TABLE = re.compile(r"<(/?)table\b[^<>]*>", re.IGNORECASE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")

_EXTERNAL_LINK = re.compile(
    r"\[(?:(?:https?|ftps?|irc|git|svn|nntp):)?(?://|(?<=\[)mailto:|(?<=\[)news:)[^\s\[\]<>\"]*(?:[ \t]([^\[\]\n]*))?\]"
)
_FOUR_QUOTES = re.compile(r"(?<!')''''(?!')")
_QUOTES = re.compile(r"''+")
_MAGIC_WORD = re.compile(r"__(?:[A-Z]{3,}|[가-힣]+)__")
_CONVERSION = re.compile(r"-\{(?:[^{}|;:]*\|)?(?:\s*zh[a-z-]*\s*:)?([^{};]*)(?:;[^{}]*)?\}-")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

_NONCHARACTERS = re.compile("[\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
_ODD_SPACES = re.compile("[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029]")
_INNER_SPACES = re.compile(r"(?<=\S) {2,}")
_LINE_SPACES = re.compile(r"(?<! ) +\n")
_BLANK_LINES = re.compile(r"\n\n\n+")
_SPECIAL_TOKEN = re.compile(r"<\|([^<>\n]{0,200}?)\|>")

# Repair of parentheses: what editors leave, and (with a hole) what a dropped template leaves. `print()` stays.
_EMPTY = re.compile(r"\((?<![A-Za-z0-9_\])}>$]\()[ ,;~·、/]*\)")
_AFTER_OPEN = re.compile(r"\( *(?:[,;、:·] *)+(?=[^)\s])")
_BEFORE_CLOSE = re.compile(r"[,、;][ ,、;]{0,20}\)")
_EMPTY_HOLE = re.compile(rf" ?\([ ,;:~·、/{HOLE}]*{HOLE}[ ,;:~·、/{HOLE}]*\)")
_OPEN_HOLE = re.compile(rf"\([ ,;、:·]*{HOLE}[ ,;、:·{HOLE}]*")
_CLOSE_HOLE = re.compile(rf"[ ,、;]{{0,20}}{HOLE}[ ,、;{HOLE}]{{0,20}}\)")
_COMMA_HOLE = re.compile(rf"([,;、])(?: *{HOLE} *[,;、])+")
_ANY_HOLE = re.compile(rf"^{HOLE} *| ?{HOLE}(?=[ .,!?)]|$)|{HOLE}", re.MULTILINE)


def clean(wikitext: str, title: str = "", *, lang: str = "ko", page: Page | None = None) -> str:
    """Returns the running text of a page, in NFC; headings and list items are plain lines.

    Args:
        wikitext: a page's source; any string is accepted, broken markup costs at most its paragraph.
        title: replaces `{{PAGENAME}}`; it is not added to the text, a document has a field for it.
        lang: ISO 639-1 code; Korean country names are used for `ko` only.
        page: template table and counts of unknown templates; by default the shipped table.
    """
    page = page or Page(load_table(lang), title)
    text = _LINE_ENDS.sub("\n", _NONCHARACTERS.sub("", wikitext))
    text = _drop_comments(text)
    kept: list[str] = []
    if "<" in text:
        text = _take_tags(text, kept)
    text = resolve(drop_footers(text), page)
    if "<table" in text or "<TABLE" in text:
        text = _HTML_TABLE.sub(lambda m: "\n|}\n" if m[1] else "\n{|", text)
    text = _inline(drop_tables(text))
    text = lay_out(text)
    if "''" in text:
        text = _QUOTES.sub("", _FOUR_QUOTES.sub("'", text) if "''''" in text else text)
    return _finish(_repair(_characters(text)), kept)


def _drop_comments(text: str) -> str:
    """Drops `<!-- -->`; an unclosed one goes up to the end of its line."""
    if "<!--" not in text:
        return text
    out: list[str] = []
    position = 0
    while (start := text.find("<!--", position)) >= 0:
        out.append(text[position:start])
        end = text.find("-->", start + 4)
        if end < 0:
            # No further comment can end either: each goes with its line.
            return "".join(out) + re.sub(r"<!--[^\n]*", "", text[start:])
        position = end + 3
        if (not out[-1] or out[-1][-1] == "\n") and text[position : position + 1] == "\n":
            position += 1  # a comment alone on its line leaves no blank line
    return "".join(out) + text[position:]


def _take_tags(text: str, kept: list[str]) -> str:
    """Drops references, galleries and their like; moves code and mathematics to `kept`."""
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
                out.append(f"{_OPEN}{len(kept)}{_CLOSE}")
                kept.append(_raw(name, text[position : tokens[partner].start()]))
            position, index = tokens[partner].end(), partner + 1
        elif name not in _RAW_TAGS:
            # Damage ends with the line of a reference, with the paragraph of a gallery or the like.
            end = text.find("\n" if name == "ref" else "\n\n", position)
            next_open = tokens[partner].start() if partner is not None and not tokens[partner][1] else len(text)
            position = min(end if end >= 0 else len(text), next_open) if name not in ("references", "rp") else position
    out.append(text[position:])
    return "".join(out)


def _partner(tokens: list[re.Match[str]], index: int, name: str) -> int | None:
    """Returns the index of the tag that ends `name`; for a reference also the next one's start."""
    for i in range(index, len(tokens)):
        token = tokens[i]
        if token[2].lower() == name and (token[1] or (name == "ref" and not token[3].endswith("/"))):
            return i
    return None


def _raw(name: str, content: str) -> str:
    if name in ("math", "chem", "ce"):
        body = " ".join(html.unescape(content).split())
        return (f"${body}$" if name == "math" else f"$\\ce{{{body}}}$") if body else ""
    content = _ENTITY.sub(lambda m: html.unescape(m[0]), re.sub(r"</?nowiki\s*/?>", "", content))
    return content if name in ("nowiki", "code") else f"\n{content.strip(chr(10))}\n"


def _inline(text: str) -> str:
    """Removes external links' addresses, tags, magic words and language conversion."""
    if "[" in text:
        text = _EXTERNAL_LINK.sub(lambda m: (m[1] or "").strip(), text)
    if "<" in text:
        text = _BREAK.sub("\n", text)
        text = _SUPERSCRIPT.sub(lambda m: m[1].translate(SUPERSCRIPTS), text)
        text = _RUBY.sub(r"(\1)", text)
        text = _HTML.sub("", text)
    if "__" in text:
        text = _MAGIC_WORD.sub("", text)
    if "-{" in text:
        text = _CONVERSION.sub(r"\1", text)
    return text


def _characters(text: str) -> str:
    """Resolves entities (two deep), drops invisible characters, makes every space a plain one."""
    for _ in range(2):
        if "&" in text:
            text = _ENTITY.sub(lambda m: html.unescape(m[0]), text)
    return _plain_characters(text)


def _plain_characters(text: str) -> str:
    return _ODD_SPACES.sub(" ", _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)))


def _repair(text: str) -> str:
    """Mends what dropped templates leave: `(, 1924년` -> `(1924년`, `()` and `( ~ )` go."""
    if HOLE in text:
        text = _EMPTY_HOLE.sub("", text)
        text = _CLOSE_HOLE.sub(")", _OPEN_HOLE.sub("(", text))
        text = _ANY_HOLE.sub("", _COMMA_HOLE.sub(r"\1", text))
    if "(" in text:
        text = _BEFORE_CLOSE.sub(")", _AFTER_OPEN.sub("(", text))
        text = _EMPTY.sub("", text)
    return _INNER_SPACES.sub(" ", text) if "  " in text else text


def _finish(text: str, kept: list[str]) -> str:
    if kept:
        text = _PROTECTED.sub(lambda m: kept[int(m[1])], text)
        text = _NONCHARACTERS.sub("", _plain_characters(text))
    text = unicodedata.normalize("NFC", text)
    if "<|" in text:
        text = _SPECIAL_TOKEN.sub(r"< |\1| >", text)
    if " \n" in text:
        text = _LINE_SPACES.sub("\n", text)
    return _BLANK_LINES.sub("\n\n", text).strip()
