"""What is going wrong in a training, found in what it logs."""
