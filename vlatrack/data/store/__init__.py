"""What is computed once from a dataset and kept: its episodes' numbers and image codes, in verified Arrow files."""
