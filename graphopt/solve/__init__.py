"""Plain functions on matrices: scores, masks, packing, least squares; no graph in sight."""
