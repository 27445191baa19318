"""The training loop: set-up, steps, validation, and the state that a run continues from."""
