"""Which block of keys and values belongs to whom; knows no tensor."""
