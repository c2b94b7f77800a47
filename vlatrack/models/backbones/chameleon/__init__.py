"""The Chameleon backbone."""
