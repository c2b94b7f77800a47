"""The results of a run: log files, figures, and the table at the end."""
