"""The laws that every method keeps, each tried on a small model and, when it is broken, told in a sentence."""
