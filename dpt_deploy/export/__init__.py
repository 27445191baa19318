"""Export a checkpoint to a bundle; see `pipeline.export_checkpoint`."""
