"""A MediaWiki export: its pages, and plain text from their wikitext."""
