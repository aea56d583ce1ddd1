"""Text of a dump's articles by another library, run in the peers' environment: extract.py METHOD DUMP OUT.jsonl."""

import bz2
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

Article = tuple[str, str]


def streamed(dump: Path) -> Iterator[Article]:
    """Yields (id, wikitext) of the articles with memory for one page."""
    from lxml import etree

    with bz2.open(dump) as file:
        for _, page in etree.iterparse(file, tag="{*}page"):
            if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
                yield page.findtext("{*}id"), page.findtext("{*}revision/{*}text") or ""
            page.clear()
            while page.getprevious() is not None:
                del page.getparent()[0]


def whole_file(dump: Path) -> Iterator[Article]:
    """Yields (id, wikitext) of the articles from one dictionary of the whole file."""
    import xmltodict

    with bz2.open(dump) as file:
        pages = xmltodict.parse(file.read())["mediawiki"]["page"]
    for page in pages:
        if page["ns"] == "0" and "redirect" not in page:
            yield page["id"], page["revision"]["text"].get("#text", "")


def plain_text(wikitext: str) -> str:
    """Wikitextparser's own conversion."""
    import wikitextparser

    return wikitextparser.parse(wikitext).plain_text()


def without_table_lines(wikitext: str) -> str:
    """The same, less the lines that hold a pipe: the approach of kowikitext."""
    return "\n".join(line for line in plain_text(wikitext).split("\n") if "|" not in line)


def strip_code(wikitext: str) -> str:
    """Mwparserfromhell's own conversion."""
    import mwparserfromhell

    return str(mwparserfromhell.parse(wikitext).strip_code())


def wikiextractor(dump: Path) -> Iterator[Article]:
    """Yields (id, text) from wikiextractor's command, one process, without a pass for templates."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "wikiextractor.WikiExtractor", "--json", "--no-templates", "-q"]
        subprocess.run([*command, "--processes", "1", "-o", folder, str(dump)], check=True)
        for path in sorted(Path(folder).rglob("wiki_*")):
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                yield row["id"], row["text"]


METHODS = {
    "kowikitext's approach": (whole_file, without_table_lines),
    "wikitextparser plain_text": (streamed, plain_text),
    "mwparserfromhell strip_code": (streamed, strip_code),
    "wikiextractor": (wikiextractor, str),
}

if __name__ == "__main__":
    read, convert = METHODS[sys.argv[1]]
    with open(sys.argv[3], "w", encoding="utf-8") as out:
        for page_id, text in read(Path(sys.argv[2])):
            out.write(json.dumps({"id": page_id, "text": convert(text)}, ensure_ascii=False) + "\n")
