"""The hybrid model: mixers, blocks, inference state, Hugging Face import and export."""
