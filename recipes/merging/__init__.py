"""Streamed arithmetic over Hugging Face safetensors directories."""
