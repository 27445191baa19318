"""A local page that shows what a bundle predicts for an image or a camera."""
