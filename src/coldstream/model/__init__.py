"""From tensors to logits: the native decoder, in plain torch."""
