// Numbers as people read them.

// A depth in its unit. Relative depth has none, and may have any range.
export function depthText(value, metric, digits = 3) {
  return metric ? `${value.toFixed(digits)} m` : String(Number(value.toPrecision(digits)));
}
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
const degrees = (value, digits = 1) => `${value.toFixed(digits)}°`;
const small = (value, unit) => value === null ? "not finite" : unit(value, Math.abs(value) < 0.001 ? 3 : 2);

// What one gets of an image, as a phrase.
export function promise(models) {
  const any = (head, kind) => models.some((model) => model.heads.includes(head) && (!kind || model.depth === kind));
  const parts = [
    any("depth", "metric") && "its depth in metres", any("depth", "relative") && "its relative depth",
    any("normals") && "its surface normals", any("alpha") && "its cut-out", any("depth", "metric") && "a point cloud to turn",
  ].filter(Boolean);
  return parts.length < 2 ? parts.join() : `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;
}

export function bytes(count) {
  return count < 1e6 ? `${(count / 1e3).toFixed(0)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

// The angle between a surface and the direction to the viewer: 0 faces the camera, 90 is its outline.
export function angle(z) {
  return Math.acos(Math.min(1, Math.max(-1, z))) * 180 / Math.PI;
}

export const depthName = (models) => models.some((model) => model.metric) ? "Depth" : "Relative depth";

function depthAt(model, i, mixed) {
  if (model.depth[i] === 0) return "none";
  const text = depthText(model.scale * model.depth[i] + model.bias, model.metric);
  return mixed && !model.metric ? `${text} without unit` : text;
}

// Name and text of each value at a pixel; of two models, both.
export function valuesAt(models, i) {
  const rows = [];
  const both = (name, has, text) => {
    if (models.some(has)) rows.push([name, models.map((model) => has(model) ? text(model) : "no map").join(" | ")]);
  };
  const mixed = models.some((model) => model.metric);
  both(depthName(models), (model) => model.depth, (model) => depthAt(model, i, mixed));
  both("Angle to the viewer", (model) => model.normals, (model) => degrees(angle(model.normals[3 * i + 2])));
  both("Foreground", (model) => model.alpha, (model) => percent(model.alpha[i] / 255));
  return rows;
}

// The difference of the second model from the first, in the units of the task; of relative depth, in percent of its range.
export function differenceRows(found, models) {
  const {depth, normals, alpha} = found;
  const rows = [];
  if (depth) {
    const of = models[0].metric ? "" : ", of its range";
    rows.push([depthName(models), `${small(depth.abs_rel, percent)} on average, ${small(depth.max, percent)} at most${of}`]);
  } else if (models.every((model) => model.depth)) {
    rows.push(["Depth", "one is in metres, one is relative"]);
  }
  if (normals) rows.push(["Normals", `${small(normals.mean, degrees)} on average, ${small(normals.max, degrees)} at most`]);
  if (alpha) rows.push(["Cut-out", `${small(alpha.max, percent)} at most, IoU ${alpha.iou === null ? "not finite" : alpha.iou.toFixed(4)}`]);
  return rows;
}
