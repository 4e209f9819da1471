"""What prune-channels is made of."""
