"""What the pass ``repair-qdq`` mends in a model that is quantized already, one module per kind of fault."""
