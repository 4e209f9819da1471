"""Where channels are written and read, so that scale can move between the two."""
