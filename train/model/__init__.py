"""What is specific to training a model: forward pass with units and precision, losses, starting weights."""
