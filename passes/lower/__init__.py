"""Passes that lower."""
