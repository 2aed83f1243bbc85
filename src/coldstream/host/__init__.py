"""The machine: what this process may use of it, and its C library. Nothing else reads /proc or calls libc."""
