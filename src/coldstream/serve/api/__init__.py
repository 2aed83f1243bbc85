"""`POST /generate`: tasks, requests, streams, and the schema that documents them."""
