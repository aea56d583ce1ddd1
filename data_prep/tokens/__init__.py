"""Documents to ids: tokenizers and token shards."""
