"""What is folded, how it is computed, and where the value goes."""
