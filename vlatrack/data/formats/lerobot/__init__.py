"""LeRobot v3.0 datasets: reading and writing."""
