"""Documents: made from a source, filtered, deduplicated."""
