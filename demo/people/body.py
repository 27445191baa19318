"""The body: Anny's mesh with a random build, in a random pose, in clothes and hair.

Rest space, in which garments and skin are painted, is that of Anny's average body: x to the person's left, y to its
back, z up; metres. Body space is that of `train.data.synthetic.body`: x right, y up, z towards the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpt_deploy.core.errors import BadInput

from .raster import vertex_normals
from .wardrobe import HEAD, LEG, TORSO, Look, covered, grouped, hair_height

FROM_REST = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0.0]])  # rest or Anny's space @ this = body space
ELBOW = np.array((-0.758, -0.093, -0.646))  # the axis of the left elbow, in rest space


@dataclass(frozen=True)
class Person:
    """A triangle mesh and what is painted on it."""

    vertices: np.ndarray
    """float64 (V, 3), body space [m]."""
    faces: np.ndarray
    """int64 (F, 3)."""
    rest: np.ndarray
    """float64 (V, 3): the vertices in rest space [m]."""
    groups: np.ndarray
    """int64 (F,): the part of the body, a constant of `wardrobe`."""
    eyes: np.ndarray
    """float64 (3,): between the eyes, body space [m]."""


class Bodies:
    """Anny's body model. One instance serves all people of a process.

    Raises:
        BadInput: The package anny is not installed.
    """

    def __init__(self) -> None:
        try:
            import anny
            import torch
            from anny.face_segmentation import get_face_segmentation_mask
        except ImportError as error:
            raise BadInput(f"expected the package anny, and it cannot be imported ({error}). "
                           "demo/model/README.md has the command that installs it.") from error
        self._torch = torch
        self.model = anny.Anny(phenotypes="all").to(torch.float32)
        self.rest = self._posed({}, dict.fromkeys(self.model.phenotype_labels, 0.5))
        self.faces = self.model.faces.numpy().astype(np.int64)

        def part(*names: str) -> np.ndarray:
            return get_face_segmentation_mask(self.model, list(names)).numpy()

        weights, indices = self.model.vertex_bone_weights.numpy(), self.model.vertex_bone_indices.numpy()
        strongest = np.take_along_axis(indices, weights.argmax(axis=1)[:, None], axis=1)[:, 0]
        self.vertex_groups = grouped(self.model.bone_labels)[strongest]
        groups = self.vertex_groups[self.faces].max(axis=1)
        groups[part("eye_front.L", "eye_front.R", "eye_back.L", "eye_back.R")] = grouped(["eye.L"])[0]
        kept = ~part("mouth_cavity", "tongue")
        self.faces, self.groups = self.faces[kept], groups[kept]
        eye_faces = self.faces[self.groups == grouped(["eye.L"])[0]]
        self.eye_vertices = np.unique(eye_faces)
        self.head_vertices = np.setdiff1d(np.flatnonzero(self.vertex_groups == HEAD), self.eye_vertices)
        self.edges = np.unique(np.sort(np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]],
                                                       self.faces[:, [2, 0]]]), axis=1), axis=0)
        self.seat = (self.rest[:, 2] < 0.06) & np.isin(self.vertex_groups, (TORSO, LEG))
        self.ball, self.ball_faces = icosphere(3)

    def _posed(self, pose: dict[str, np.ndarray], build: dict[str, float]) -> np.ndarray:
        """Vertices (V, 3) in Anny's space [m], of rotation vectors [rad] by bone, and a build."""
        torch = self._torch
        matrices = np.tile(np.eye(4, dtype=np.float32), (self.model.bone_count, 1, 1))
        for bone, vector in pose.items():
            matrices[self.model.bone_labels.index(bone), :3, :3] = rotation_matrix(vector)
        with torch.no_grad():
            out = self.model(pose_parameters=torch.from_numpy(matrices)[None], phenotype_kwargs=build)
        return out["vertices"][0].numpy().astype(np.float64)

    def person(self, look: Look, rng: np.random.Generator) -> Person:
        """A person with this look, facing +z, the pose drawn from `rng`."""
        vertices = self._posed(random_pose(rng), random_build(rng)) @ FROM_REST
        cover, thickness = covered(self.rest, self.vertex_groups, look)
        vertices = self._loose(vertices, cover, look.smoothing)
        vertices = self._loose(vertices, cover & self.seat, 15)
        height = thickness + look.folds(self.rest) * (cover)
        for _ in range(2):  # so that a hem is a step that the mesh can show
            height = np.where(self.vertex_groups == HEAD, height, 0.5 * height + 0.5 * self._average(height))
        hair = hair_height(self.rest, look) * (self.vertex_groups == HEAD)
        hair[self.eye_vertices] = 0
        normals = vertex_normals(vertices, self.faces)
        eyes = vertices[self.eye_vertices].mean(axis=0)
        head = affine(self.rest[self.head_vertices], vertices[self.head_vertices])
        vertices = vertices + (height + hair)[:, None] * normals
        meshes = [(vertices, self.faces, self.rest, self.groups)]
        for centre, radii, rough, group in look.extras:
            rest = centre + self.ball * radii
            rest = centre + (rest - centre) * (1 + rough * look.roughness(rest))[:, None]
            posed = np.c_[rest, np.ones(len(rest))] @ head
            meshes.append((posed, self.ball_faces, rest, np.full(len(self.ball_faces), group)))
        return joined(meshes, eyes)

    def _average(self, values: np.ndarray) -> np.ndarray:
        """The mean over the neighbours of each vertex; values (V,) or (V, C)."""
        flat = values.reshape(len(values), -1)
        a, b = self.edges.T
        degree = np.bincount(a, minlength=len(flat)) + np.bincount(b, minlength=len(flat))
        total = np.stack([np.bincount(a, column[b], len(flat)) + np.bincount(b, column[a], len(flat))
                          for column in flat.T], axis=1)
        return (total / np.maximum(degree, 1)[:, None]).reshape(values.shape)

    def _loose(self, vertices: np.ndarray, clothed: np.ndarray, times: int) -> np.ndarray:
        """Smooth the clothed vertices: a garment does not follow every muscle."""
        for _ in range(times):
            vertices = np.where(clothed[:, None], self._average(vertices), vertices)
        return vertices


def joined(meshes: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]], eyes: np.ndarray) -> Person:
    """One mesh of several: vertices, faces, rest positions and groups of each."""
    starts = np.cumsum([0] + [len(mesh[0]) for mesh in meshes[:-1]])
    faces = [mesh[1] + start for mesh, start in zip(meshes, starts, strict=True)]
    return Person(np.concatenate([mesh[0] for mesh in meshes]), np.concatenate(faces),
                  np.concatenate([mesh[2] for mesh in meshes]), np.concatenate([mesh[3] for mesh in meshes]), eyes)


def affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The matrix (4, 3) with (source, 1) @ matrix nearest to target; both (N, 3)."""
    return np.linalg.lstsq(np.c_[source, np.ones(len(source))], target, rcond=None)[0]


def icosphere(times: int) -> tuple[np.ndarray, np.ndarray]:
    """A unit ball of triangles: vertices (V, 3) and faces (F, 3), an icosahedron divided `times` times."""
    from trimesh.creation import icosphere as make

    ball = make(subdivisions=times)
    return np.asarray(ball.vertices), np.asarray(ball.faces)


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) of a rotation vector (3,) [rad]."""
    import cv2

    return cv2.Rodrigues(np.asarray(vector, np.float64))[0]


def random_build(rng: np.random.Generator) -> dict[str, float]:
    """Anny's phenotypes in [0, 1]: mostly adults."""
    gender = np.clip(rng.choice([0.08, 0.92]) + rng.normal(0, 0.1), 0, 1)
    origin = rng.dirichlet((0.5, 0.5, 0.5))
    return {
        "gender": float(gender), "age": float(rng.uniform(0.6, 1.0) if rng.random() < 0.9 else rng.uniform(0.35, 0.6)),
        "muscle": float(rng.beta(3, 3)), "weight": float(rng.beta(2.5, 3)), "height": float(rng.beta(4, 4)),
        "proportions": float(rng.uniform(0.3, 0.9)), "cupsize": float(rng.beta(3, 3)),
        "firmness": float(rng.uniform(0.3, 0.8)),
        **dict(zip(("african", "asian", "caucasian"), map(float, origin), strict=True)),
    }


def random_pose(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rotation vectors [rad] by bone, in rest space."""
    def degrees(x: float, y: float, z: float) -> np.ndarray:
        return np.radians((x, y, z))

    pose = {}
    spine = np.array((rng.normal(3, 7), rng.normal(0, 5), rng.normal(0, 9)))
    for bone in ("spine05", "spine04", "spine03", "spine02", "spine01"):
        pose[bone] = degrees(*spine / 4)
    head = np.array((rng.normal(2, 9), rng.normal(0, 6), rng.normal(0, 20)))
    for bone in ("neck01", "neck03", "head"):
        pose[bone] = degrees(*head / 3)
    seated = rng.random() < 0.15
    swing = rng.normal(80, 8) if seated else 0.0
    together = rng.random() < 0.5  # both arms alike
    arms = [_arm(rng), _arm(rng)]
    for side, mirror in (("L", np.array((1, 1, 1))), ("R", np.array((1, -1, -1)))):
        upper, elbow, twist = arms[0] if together or side == "L" else arms[1]
        pose[f"upperarm01.{side}"] = mirror * degrees(*upper)
        pose[f"lowerarm01.{side}"] = mirror * np.radians(elbow) * ELBOW
        pose[f"lowerarm02.{side}"] = mirror * degrees(*twist)
        pose[f"wrist.{side}"] = mirror * degrees(*rng.normal(0, 12, 3))
        flexed = swing + (rng.normal(0, 4) if seated else rng.normal(4, 13))
        pose[f"upperleg01.{side}"] = mirror * degrees(-flexed, rng.normal(2, 5), rng.normal(0, 6))
        pose[f"lowerleg01.{side}"] = degrees(rng.normal(80, 10) if seated else abs(rng.normal(0, 14)), 0, 0)
    return pose


def _arm(rng: np.random.Generator) -> tuple[tuple[float, float, float], float, tuple[float, float, float]]:
    """Left upper arm [degrees], flexion of the elbow [degrees], twist of the forearm [degrees]."""
    kind = rng.random()
    if kind < 0.55:  # hanging
        upper = (rng.normal(-4, 12), rng.normal(33, 8), rng.normal(0, 10))
        return upper, rng.uniform(-35, 40), (0, 0, rng.normal(0, 15))
    if kind < 0.8:  # before the body: folded, on the hips, holding something
        upper = (rng.normal(-20, 15), rng.normal(25, 10), rng.normal(-15, 20))
        return upper, rng.uniform(30, 85), (0, 0, rng.normal(0, 20))
    upper = (rng.normal(-15, 25), rng.uniform(-70, 20), rng.normal(0, 20))
    return upper, rng.uniform(-20, 90), (0, 0, rng.normal(0, 20))
