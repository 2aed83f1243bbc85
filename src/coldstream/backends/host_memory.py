"""What of a host's memory keys and values may take."""

from __future__ import annotations

from coldstream.host.limits import memory_available

# Of the memory that is free when the engine is made, keys and values may take so much, unless something else is said.
_SHARE = 0.4
_FALLBACK_BYTES = 1 << 30


def host_kv_bytes() -> int:
    """Bytes for keys and values where the settings name none."""
    available = memory_available()
    return int(available * _SHARE) if available is not None else _FALLBACK_BYTES
