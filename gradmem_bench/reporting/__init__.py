"""What a person reads: tables made from run records."""
