"""What layers compute: their weights, and the scales and shifts around them."""
