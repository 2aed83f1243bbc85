"""Where bytes come from: one protocol, and a store for each kind of place."""
