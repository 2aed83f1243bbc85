"""From requests to tokens: scheduling, keys and values, sampling, text. Knows no HTTP."""
