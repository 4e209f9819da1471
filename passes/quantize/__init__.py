"""Passes that quantize."""
