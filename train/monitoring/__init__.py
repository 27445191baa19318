"""What a run measures, shows and logs."""
