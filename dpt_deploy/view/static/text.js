// Numbers as people read them.

const metres = (value) => value === 0 ? "none" : `${(value / 1000).toFixed(3)} m`;
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
const degrees = (value, digits = 1) => `${value.toFixed(digits)}°`;
const small = (value, unit) => value === null ? "not finite" : unit(value, Math.abs(value) < 0.001 ? 3 : 2);

export function bytes(count) {
  return count < 1e6 ? `${(count / 1e3).toFixed(0)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

// The angle between a surface and the direction to the viewer: 0 faces the camera, 90 is its outline.
export function angle(z) {
  return Math.acos(Math.min(1, Math.max(-1, z))) * 180 / Math.PI;
}

// Name and text of each value at a pixel; of two models, both.
export function valuesAt(models, i) {
  const rows = [];
  const both = (name, has, text) => {
    if (models.every(has)) rows.push([name, models.map(text).join(" | ")]);
  };
  both("Depth", (model) => model.depth, (model) => metres(model.depth[i]));
  both("Angle to the viewer", (model) => model.normals, (model) => degrees(angle(model.normals[3 * i + 2])));
  both("Foreground", (model) => model.alpha, (model) => percent(model.alpha[i] / 255));
  return rows;
}

// The difference of the second model from the first, in the units of the task.
export function differenceRows(found) {
  const {depth, normals, alpha} = found;
  const rows = [];
  if (depth) rows.push(["Depth", `${small(depth.abs_rel, percent)} on average, ${small(depth.max, percent)} at most`]);
  if (normals) rows.push(["Normals", `${small(normals.mean, degrees)} on average, ${small(normals.max, degrees)} at most`]);
  if (alpha) rows.push(["Cut-out", `${small(alpha.max, percent)} at most, IoU ${alpha.iou === null ? "not finite" : alpha.iou.toFixed(4)}`]);
  return rows;
}
