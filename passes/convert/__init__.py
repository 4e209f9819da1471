"""Passes that change the version of the operators."""
