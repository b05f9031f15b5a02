"""From documents to batches: vocabularies, shards on disk, blends, packing, and which rows each step reads."""
