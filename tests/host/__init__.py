"""The HTTP room, against a scripted engine: the same seam as the real one, with tokens and times under control."""
