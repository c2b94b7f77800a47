"""What is wrong with demonstrations: checks of their values, episodes, splits and images."""
