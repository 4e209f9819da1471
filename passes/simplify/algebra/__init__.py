"""What operators on single elements, ranges and views do to each other."""
