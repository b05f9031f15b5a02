"""Hugging Face folders: config.json, tensors by their published names, quantization; read and written."""
