"""Bodies of If, Loop and Scan: what they read, and how nodes leave them."""
