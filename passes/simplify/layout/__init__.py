"""Layouts: which order of axes each part of a graph computes in."""
