"""What is known of tensors that shape computations make."""
