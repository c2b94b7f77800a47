"""A policy behind a port: the server, the two protocols that it speaks, and a client."""
