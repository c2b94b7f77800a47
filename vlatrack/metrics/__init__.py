"""Every metric the framework may log: its meaning, unit and direction."""
