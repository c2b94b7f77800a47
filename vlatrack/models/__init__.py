"""The policy: a Chameleon backbone, the continuous ActionHead, and the documented losses."""
