"""L6: what a model costs: parameters, multiply-accumulates, activations, published accuracy."""
