"""Takes quantized operators back to float ones: what `dequantize` and `expand-qoperators` are made of."""
