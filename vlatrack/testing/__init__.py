"""For those who write a tracker backend: the contract as tests, and an example that passes them."""
