"""Generated samples: people made of ellipsoids, with analytic depth and normals."""
