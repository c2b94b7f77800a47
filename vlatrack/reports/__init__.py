"""What a run comes to: figures for the eye, tables for the terminal."""
