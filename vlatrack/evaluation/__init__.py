"""What a policy does on demonstrations it was not trained on."""
