"""The pages of one part of a dump as documents: articles are cleaned, all else is rejected with its reason."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from data_prep.document import Document
from data_prep.source import Loss, Rejection
from data_prep.wiki import brackets, wikitext
from data_prep.wiki.pages import BrokenPageError, Fragment, Page, PageCutter, parse_page
from data_prep.wiki.siteinfo import Site
from data_prep.wiki.templates import Table
from data_prep.wiki.unknown import UnknownTemplates

CHOICE_TITLES = ("(동음이의)", "(동명이인)", "(disambiguation)")

MAX_TITLE_CHARS = 100  # shown of a page that cannot be read

# MediaWiki's own form of a redirect; `# redirect` without a link is a list item.
_REDIRECT = re.compile(r"[\s\ufeff\u200b]*#\s*(?:넘겨주기|redirect)\s*:?\s*\[\[", re.IGNORECASE)


@dataclass
class ArticleReader:
    """Iterates over the articles and rejections of one part.

    Args:
        cutter: of the part's pages.
        site: the wiki.
        source: name of the wiki, the first part of a document's id.
        lang: language of the articles.
        table: what becomes of templates.
        shift: added to the offsets of losses, for a part that is a piece of a decompressed stream.
    """

    cutter: PageCutter
    site: Site
    source: str
    lang: str
    table: Table
    shift: int | None = None
    losses: list[Loss] = field(default_factory=list)
    unknown: UnknownTemplates = field(default_factory=UnknownTemplates)
    _page: Page | None = None

    @property
    def position(self) -> int:
        """File offset read so far, at most the part's end."""
        return min(self.cutter.position, self.cutter.end)

    def __iter__(self) -> Iterator[Document | Rejection]:
        """Yields one item per page; what could not be read is in `losses` when all are yielded."""
        for item in self.cutter:
            if isinstance(item, Loss):
                self._lose(item.start, item.end, item.cause)
            else:
                yield self._record(item)

    def facts(self) -> dict[str, Any]:
        """Returns the losses, and the calls of templates that the table does not know."""
        return {"losses": [asdict(loss) for loss in self.losses], "unknown": self.unknown.as_json()}

    def with_headings(self) -> str:
        """Returns the text of the article yielded last, with headings as kowikitext has them."""
        assert self._page is not None
        templates = brackets.Page(self.table, self._page.title, timestamp=self._page.timestamp)
        return wikitext.clean(self._page.text, self._page.title, lang=self.lang, page=templates, headings="kowikitext")

    def _lose(self, start: int, end: int, cause: str) -> None:
        shift = self.shift or 0
        self.losses.append(Loss(self.cutter.name, start + shift, end + shift, cause, self.shift is not None))

    def _record(self, fragment: Fragment) -> Document | Rejection:
        number = f"{self.source}-{fragment.id}"
        if not fragment.is_whole:
            return Rejection(number, fragment.title, "page_too_large")
        if early := fragment.rejection:
            return Rejection(number, fragment.title, early)
        try:
            self._page = page = parse_page(fragment.data)
        except BrokenPageError as error:
            cause = str(error) if fragment.has_end else "</page> is missing"
            self._lose(fragment.start, fragment.end, f"page {fragment.title[:MAX_TITLE_CHARS]!r}: {cause}")
            return Rejection(number, fragment.title, "broken_page")
        reason = self._rejection(page)
        number = f"{self.source}-{page.id}"
        return Rejection(number, page.title, reason) if reason else self._document(number, page)

    def _rejection(self, page: Page) -> str | None:
        """Returns why a page is no article."""
        namespace = self.site.namespace_of(page.title) if page.namespace is None else page.namespace
        if namespace != 0:
            return "namespace"
        if page.has_redirect or _REDIRECT.match(page.text):
            return "redirect"
        if page.model != "wikitext":
            return "not_wikitext"
        is_choice = page.title.endswith(CHOICE_TITLES) or self.table.disambiguation.search(page.text)
        return "disambiguation" if is_choice else None

    def _document(self, number: str, page: Page) -> Document:
        templates = brackets.Page(self.table, page.title, self.unknown, page.timestamp)
        return Document(
            id=number,
            text=wikitext.clean(page.text, page.title, lang=self.lang, page=templates),
            source=self.source,
            lang=self.lang,
            title=page.title,
            url=self.site.url(page.title),
            revision=page.revision,
            timestamp=page.timestamp,
        )
