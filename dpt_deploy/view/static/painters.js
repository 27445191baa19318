// Maps as colours: each function fills RGBA pixels of the image's size.

const FAINT = 0.12; // opacity of depth and normals where alpha says background

// Opacity of each pixel, 0 to 255: all of it, or faded where alpha says background.
function opacity(model, fade) {
  const {alpha, hasForeground} = model;
  if (!fade || !alpha || !hasForeground) return () => 255;
  return (i) => 255 * FAINT + (1 - FAINT) * alpha[i];
}

// Where the colour of a depth begins in the list of colours.
export function depthColour({depth, scale, bias, range: [near, far]}, i) {
  const share = (far - scale * depth[i] - bias) / (far - near || 1);
  return 3 * Math.round(255 * Math.min(1, Math.max(0, share)));
}

export function paintDepth(out, model, colours, fade) {
  const opaque = opacity(model, fade);
  for (let i = 0; i < model.depth.length; i++) {
    const level = depthColour(model, i);
    const there = model.depth[i] > 0;
    out[4 * i] = there ? colours[level] : 0;
    out[4 * i + 1] = there ? colours[level + 1] : 0;
    out[4 * i + 2] = there ? colours[level + 2] : 0;
    out[4 * i + 3] = opaque(i);
  }
}

export function paintNormals(out, model, fade) {
  const opaque = opacity(model, fade);
  const {normals} = model;
  for (let i = 0, j = 0; j < normals.length; i++, j += 3) {
    out[4 * i] = normals[j] * 127.5 + 127.5;
    out[4 * i + 1] = normals[j + 1] * 127.5 + 127.5;
    out[4 * i + 2] = normals[j + 2] * 127.5 + 127.5;
    out[4 * i + 3] = opaque(i);
  }
}

// The image, or clay, under a lamp at light.x, light.y (1 is the edge of the longer side) and light.z above it.
export function paintLight(out, model, photo, width, height, light, clay, fade) {
  const opaque = opacity(model, fade);
  const {normals} = model;
  const unit = 2 / Math.max(width, height);
  for (let row = 0, i = 0; row < height; row++) {
    const dy = light.y - (height / 2 - row - 0.5) * unit;
    for (let column = 0; column < width; column++, i++) {
      const dx = light.x - (column + 0.5 - width / 2) * unit;
      const distance = Math.sqrt(dx * dx + dy * dy + light.z * light.z);
      const lx = dx / distance, ly = dy / distance, lz = light.z / distance;
      const nx = normals[3 * i], ny = normals[3 * i + 1], nz = normals[3 * i + 2];
      const facing = Math.max(0, nx * lx + ny * ly + nz * lz);
      const near = 1 / (0.55 + 0.45 * distance * distance);
      // Halfway between the lamp and the viewer, who is at (0, 0, 1).
      const half = Math.max(0, (nx * lx + ny * ly + nz * (lz + 1)) / Math.sqrt(lx * lx + ly * ly + (lz + 1) * (lz + 1)));
      const gloss = facing > 0 ? Math.pow(half, 40) * near * (clay ? 46 : 26) : 0;
      const shade = (clay ? 0.1 : 0.2) + (clay ? 0.85 : 1.15) * facing * near;
      const j = 4 * i;
      out[j] = (clay ? 214 : photo[j]) * shade + gloss;
      out[j + 1] = (clay ? 205 : photo[j + 1]) * shade + gloss;
      out[j + 2] = (clay ? 196 : photo[j + 2]) * shade * 0.97 + gloss * 0.9;
      out[j + 3] = opaque(i);
    }
  }
}

// What the threshold (0 to 1) leaves of alpha (0 to 255), as dpt_deploy/view/downloads.py cuts.
function cut(alpha, threshold, soft) {
  return alpha / 255 >= threshold ? (soft ? alpha : 255) : 0;
}

// A pixel is a point where it is more than half way from the threshold to full coverage: at the edge of the foreground, a
// pixel has the colour and the depth of neither side. As dpt_deploy/view/downloads.py.
export function solid(threshold) {
  return (1 + threshold) / 2;
}

export function paintCutout(out, model, photo, threshold, soft) {
  for (let i = 0; i < model.alpha.length; i++) {
    out[4 * i] = photo[4 * i];
    out[4 * i + 1] = photo[4 * i + 1];
    out[4 * i + 2] = photo[4 * i + 2];
    out[4 * i + 3] = cut(model.alpha[i], threshold, soft);
  }
}
