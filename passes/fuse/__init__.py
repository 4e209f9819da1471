"""Groups of nodes that together are one standard operator."""
