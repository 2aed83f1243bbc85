"""From a URI to a model that answers: its stream, its tokenizer and its engine, side by side. Knows no HTTP."""
