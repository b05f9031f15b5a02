"""GGUF files, as llama.cpp reads and writes them: architectures `nemotron_h` and `nemotron_h_moe`."""
