"""Context-removal tasks: the contract in `base.py`, then one kind of task a file."""
