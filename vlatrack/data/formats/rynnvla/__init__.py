"""RynnVLA-002's and WorldVLA's own data: records of finished token rows, and conversations of png and npy files."""
