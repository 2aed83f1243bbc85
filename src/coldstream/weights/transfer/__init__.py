"""How bytes come: planned, bounded, retried and verified on the way."""
