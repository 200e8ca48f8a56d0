"""Matrix products: packed weights, activations laid out for them, and the kernels that multiply."""
