"""What permute-channels is made of."""
