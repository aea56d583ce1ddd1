"""Plain text from wikitext: one pass per kind of markup, inside out, each in linear time.

Output: paragraphs and headings are separated by a blank line, list items by a newline. Headings and list items stand
as plain lines. Mathematics stands as `$...$`, code as it is. A literal special token `<|name|>` becomes `< |name| >`:
no tokenizer takes it for its own, and a reader still sees what was written.
"""

import re

from data_prep.filters.normalise import nfc
from data_prep.filters.special_tokens import defuse
from data_prep.wiki.brackets import Page, resolve
from data_prep.wiki.characters import decode, readable
from data_prep.wiki.lines import HEADING_EDGE, Headings, drop_footers, drop_tables, lay_out
from data_prep.wiki.repair import repair
from data_prep.wiki.tags import PROTECTED, break_lines, take_tags
from data_prep.wiki.templates import load_table

_REDIRECT = re.compile(r"\s*#\s*(?:넘겨주기|redirect)\s*:?\s*\[\[", re.IGNORECASE)
_HTML_TABLE = re.compile(r"<(/?)table\b[^<>]*>", re.IGNORECASE)
_EXTERNAL_LINK = re.compile(
    r"\[(?:(?:https?|ftps?|irc|git|svn|nntp):)?(?://|(?<=\[)mailto:|(?<=\[)news:)[^\s\[\]<>\"]*(?:[ \t]([^\[\]\n]*))?\]"
)
# The end of an unclosed one stays; what reads `[http://a.kr 글` was to read `글`.
_OPEN_LINK = re.compile(r"\[(?:https?:)?//[^\s\[\]<>\"]+[ \t]+(?=[^\[\]\n]*$)", re.MULTILINE)
_FOUR_QUOTES = re.compile(r"(?<!')''''(?!')")
_QUOTES = re.compile(r"''+")
_MAGIC_WORD = re.compile(
    "__(?:(?:NO|FORCE)?TOC|(?:NO)?(?:EDITSECTION|NEWSECTIONLINK|GALLERY|INDEX|TITLECONVERT|CONTENTCONVERT|TALK|GLOBAL)|"
    "NEWSECTIONLINK|NO[TC]C|HIDDENCAT|EXPECTUNUSED(?:CATEGORY|TEMPLATE)|STATICREDIRECT|DISAMBIG|START|END|[가-힣]{1,20})__"
)
_CONVERSION = re.compile(r"-\{(?:[^{}|;:]*\|)?(?:\s*zh[a-z-]*\s*:)?([^{};]*)(?:;[^{}]*)?\}-")

_LINE_SPACES = re.compile(r"(?<! ) +\n")
_BLANK_LINES = re.compile(r"\n\n\n+")


def clean(
    wikitext: str, title: str = "", *, lang: str = "ko", page: Page | None = None, headings: Headings = "plain"
) -> str:
    """Returns the running text of a page, in NFC; headings and list items are plain lines. A redirect has none.

    Args:
        wikitext: a page's source; any string is accepted, broken markup costs at most its paragraph.
        title: replaces `{{PAGENAME}}`; it is not added to the text, a document has a field for it.
        lang: ISO 639-1 code; countries and dates out of templates are Korean for `ko`, otherwise English.
        page: template table and counts of unknown templates; by default the shipped table.
        headings: `plain`, or `kowikitext`: ` = = 제목 = = `, as many equals signs on each side as the level.
    """
    text = readable(wikitext)
    if _REDIRECT.match(text):
        return ""
    page = page or Page(load_table(lang), title)
    text = _drop_comments(text)
    kept: list[str] = []
    if "<" in text:
        text = take_tags(text, kept)
    text = resolve(drop_footers(text), page)
    if "<table" in text or "<TABLE" in text:
        text = _HTML_TABLE.sub(lambda m: "\n|}\n" if m[1] else "\n{|", text)
    text = _inline(drop_tables(text))
    text = lay_out(text, headings)
    if "''" in text:
        text = _QUOTES.sub("", _FOUR_QUOTES.sub("'", text) if "''''" in text else text)
    # What was escaped twice, `&amp;nbsp;`, is decoded twice.
    return _finish(repair(decode(decode(text))), kept)


def _drop_comments(text: str) -> str:
    """Drops `<!-- -->`; an unclosed one goes up to the end of its line."""
    if "<!--" not in text:
        return text
    out: list[str] = []
    position = end = 0
    while (start := text.find("<!--", position)) >= 0:
        out.append(text[position:start])
        if 0 <= end < start + 4:
            end = text.find("-->", start + 4)
        following = text.find("<!--", start + 4, end if end >= 0 else len(text))
        if end < 0 or (following >= 0 and text.find("\n\n", start, following) >= 0):
            # Unclosed: nothing ends it, or only what ends a later paragraph's comment.
            line_end = text.find("\n", start, following if following >= 0 else len(text))
            position = line_end if line_end >= 0 else (following if following >= 0 else len(text))
            continue
        position = end + 3
        if (not out[-1] or out[-1][-1] == "\n") and text[position : position + 1] == "\n":
            position += 1  # a comment alone on its line leaves no blank line
    return "".join(out) + text[position:]


def _inline(text: str) -> str:
    """Removes external links' addresses, HTML tags, magic words and language conversion."""
    if "[" in text:
        text = _OPEN_LINK.sub("", _EXTERNAL_LINK.sub(_external_link, text))
    if "<" in text:
        text = break_lines(text)
    if "__" in text:
        text = _MAGIC_WORD.sub("", text)
    if "-{" in text:
        text = _CONVERSION.sub(r"\1", text)
    return text


def _external_link(match: re.Match[str]) -> str:
    """Returns a link's text; a bare one is a numbered note, unless a particle makes it part of the sentence."""
    if match[1]:
        return match[1].strip()
    before, after = match.string[max(0, match.start() - 1) : match.start()], match.string[match.end() : match.end() + 1]
    return match[0][1:-1].strip() if (before.isspace() or not before) and "가" <= after <= "힣" else ""


def _finish(text: str, kept: list[str]) -> str:
    if kept:
        text = PROTECTED.sub(lambda m: kept[int(m[1])], text)
    text, _ = defuse(nfc(text))
    if " \n" in text:
        text = _LINE_SPACES.sub("\n", text)
    text = _BLANK_LINES.sub("\n\n", text).strip()
    return text.replace(HEADING_EDGE, " ") if HEADING_EDGE in text else text
