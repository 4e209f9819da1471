"""Passes that simplify."""
