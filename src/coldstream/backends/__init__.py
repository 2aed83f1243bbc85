"""What computes: tensors as they land, steps of tokens, and the tokens drawn from them."""
