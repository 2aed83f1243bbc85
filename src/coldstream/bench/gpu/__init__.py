"""What a card does with the native engine: `bench/gpu.py`, on a borrowed GPU or as a Cloud Run job."""
