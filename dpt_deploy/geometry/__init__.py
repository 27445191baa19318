"""Points and meshes from depth: intrinsics, edges, triangles, and their files. Needs NumPy alone to be imported."""

from .intrinsics import Intrinsics, find_intrinsics, parse_matrix, read_matrix
from .mesh import Mesh, triangulate
from .points import Cut, PointCloud, point_cloud

__all__ = [
    "Cut", "Intrinsics", "Mesh", "PointCloud", "find_intrinsics", "parse_matrix", "point_cloud", "read_matrix",
    "triangulate",
]
