// Reads what the server sends for one image; dpt_deploy/view/answer.py describes the bytes.

const ARRAYS = {uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array};
const LITTLE = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

// The picture and the maps of one or two models.
export async function read(buffer) {
  const start = new Uint8Array(buffer, 0, 8);
  if (String.fromCharCode(...start.subarray(0, 4)) !== "DPT1" || !LITTLE) throw new Error("unreadable answer");
  const length = new DataView(buffer).getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const base = 8 + length;
  const [height, width] = header.size;
  const {offset, bytes} = header.picture;
  const bitmap = await createImageBitmap(new Blob([new Uint8Array(buffer, base + offset, bytes)], {type: "image/jpeg"}));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const models = header.models.map((model) => decode(model, buffer, base));
  const metric = models.find((model) => model.metric);
  for (const model of models) if (model.metric) model.range = metric.range; // so that their colours can be compared
  return {
    width, height, fullSize: header.full_size, canvas, photo: context.getImageData(0, 0, width, height).data,
    film: header.film, guessed: header.guessed, canonical: header.canonical, difference: header.difference || null, models,
  };
}

// depth: scale * depth + bias in metres, or without unit if it is not metric; 0 where there is none. range: what its
// colours span. normals: three floats a pixel. alpha: 0 to 255.
function decode(model, buffer, base) {
  const maps = {};
  for (const [head, one] of Object.entries(model.maps)) {
    const array = ARRAYS[one.dtype];
    maps[head] = new array(buffer, base + one.offset, one.bytes / array.BYTES_PER_ELEMENT);
  }
  const {form, scale, bias} = model.maps.depth || {};
  return {
    label: model.label, milliseconds: model.milliseconds, depth: maps.depth || null, alpha: maps.alpha || null,
    metric: form === "uint16-mm", scale, bias, range: model.depth_range || null,
    normals: maps.normals ? fromOctahedral(maps.normals) : null,
    hasForeground: Boolean(maps.alpha && maps.alpha.some((value) => value > 127)),
  };
}

// As dpt_deploy/core/compact.py: two int16 for each unit vector.
export function fromOctahedral(stored) {
  const count = stored.length / 2;
  const out = new Float32Array(3 * count);
  for (let i = 0; i < count; i++) {
    let x = stored[2 * i] / 32767, y = stored[2 * i + 1] / 32767;
    const z = 1 - Math.abs(x) - Math.abs(y);
    const fold = Math.max(-z, 0);
    x += x >= 0 ? -fold : fold;
    y += y >= 0 ? -fold : fold;
    const scale = 1 / Math.sqrt(x * x + y * y + z * z);
    out[3 * i] = x * scale;
    out[3 * i + 1] = y * scale;
    out[3 * i + 2] = z * scale;
  }
  return out;
}
