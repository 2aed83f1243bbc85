"""From a URI to tensors: what lies in the bucket, which bytes to read, and reading them."""
