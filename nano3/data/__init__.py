"""Text in, token batches out: sources, vocabularies, shards, blends, packing, generated texts and chat templates."""
