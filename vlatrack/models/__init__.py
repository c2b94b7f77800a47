"""The policy: a backbone, the continuous ActionHead, and the documented losses."""
