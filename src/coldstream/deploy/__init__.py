"""From a checkpoint in a bucket to a private Cloud Run service."""
