"""Documents out of any corpus: JSONL, Parquet, tables, text files, saved datasets, the Hub."""
