"""What stays of a document, and which documents stay."""
