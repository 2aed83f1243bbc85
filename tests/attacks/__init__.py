"""What hostile clients did to the server, one test an attack, against the stack of production."""
