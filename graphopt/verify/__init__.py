"""Verification: legality of graphs, numeric equality under a contract, bisection."""
