"""Memory methods: the contract in `base.py`, then one method a file."""
