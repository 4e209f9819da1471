"""Pairs of conversions that declare a model quantized, for targets that compile such models themselves."""
