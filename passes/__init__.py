"""The pass library: one file is one pass."""
