"""gradmem-bench: which memory for language models is worth its bytes."""

__version__ = "0.1.0"
