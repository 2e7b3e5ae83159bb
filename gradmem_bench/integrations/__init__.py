"""Other harnesses, and what they need to run a memory. Nothing else in the package imports this."""
