"""Passes that prune."""
