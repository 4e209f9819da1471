"""The parts of decomposed attention: heads, masks, angles, and what is proved of their sizes."""
