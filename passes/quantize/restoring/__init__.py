"""Takes quantized operators back to float ones: what `dequantize-model` and `expand-qoperators` are made of."""
