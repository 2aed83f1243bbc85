"""Small servers for engines that bring none. Each runs in the peer's own Python and imports no other room of ours."""
