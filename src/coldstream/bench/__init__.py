"""Side-by-side runs against peers; never timed tests."""
