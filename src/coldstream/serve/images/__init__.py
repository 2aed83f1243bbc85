"""Pictures in requests: decoded, or fetched from places that the settings name."""
