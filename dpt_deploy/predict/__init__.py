"""Predict maps and panels for images, folders, videos and cameras."""
