"""Corpora. Each file turns one form of raw data into a `Source`; `shards.sources.base` says what that is."""
