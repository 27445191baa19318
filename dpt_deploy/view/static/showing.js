// Paints what is in the state: pictures, points, values and numbers.

import {Cloud} from "./cloud.js";
import {depthColour, paintCutout, paintDepth, paintLight, paintNormals, solid} from "./painters.js";
import {append} from "./panes.js";
import {$, giving, panes, state} from "./state.js";
import {depthName, depthText, differenceRows, valuesAt} from "./text.js";

const FILM_DIAGONAL = 43.2666; // of a 35 mm film frame [mm]

const painting = {
  image: (pane, view) => pane.showPicture(view),
  depth: (pane, view, models) => pane.show(view, models, (out, model) =>
    paintDepth(out, model, state.colours, state.fade)),
  normals: (pane, view, models) => pane.show(view, models, (out, model) => {
    if (state.mode === "colours") return paintNormals(out, model, state.fade);
    return paintLight(out, model, view.photo, view.width, view.height, state.light, state.mode === "clay", state.fade);
  }),
  cutout: (pane, view, models) => pane.show(view, models, (out, model) =>
    paintCutout(out, model, view.photo, state.threshold, state.soft)),
  points: (_pane, view, models) => showPoints(view, models),
};
const dirty = new Set();

export function repaint(...names) {
  if (!dirty.size) requestAnimationFrame(() => {
    const now = [...dirty];
    dirty.clear();
    for (const name of now) {
      const models = giving(name);
      if (models.length) painting[name](panes[name], state.view, models);
    }
  });
  for (const name of names) dirty.add(name);
}

function showPoints(view, models) {
  const [first, second = first] = models;
  const split = second === first ? view.width : state.wipe * view.width;
  const of = (i) => i % view.width < split ? first : second;
  const photo = (i, out, j) => { for (let c = 0; c < 3; c++) out[j + c] = view.photo[4 * i + c]; };
  const paint = {
    photo,
    depth: (i, out, j) => {
      const level = depthColour(of(i), i);
      for (let c = 0; c < 3; c++) out[j + c] = state.colours[level + c];
    },
    normals: (i, out, j) => {
      const {normals} = of(i);
      if (!normals) return photo(i, out, j);
      for (let c = 0; c < 3; c++) out[j + c] = 127.5 + 127.5 * normals[3 * i + c];
    },
  }[state.paint];
  const focal = (state.film ?? view.film) * Math.hypot(view.width, view.height) / FILM_DIAGONAL;
  state.cloud.show(view, focal, (i) => of(i).depth[i], (i, out, j) => {
    paint(i, out, j);
    const {alpha} = of(i);
    out[j + 3] = !alpha || alpha[i] / 255 >= solid(state.threshold) ? 255 : 0;
  });
}

export function showFilm() {
  const {view, film} = state;
  const source = film !== null ? "as set" : view.guessed ? "a guess" : "from the photo";
  $("film-source").textContent = `Focal length, ${source}`;
  if (film === null) $("film").value = Math.round(view.film);
  $("film-value").textContent = `${Math.round(film ?? view.film)} mm`;
  $("film").setAttribute("aria-valuetext", $("film-value").textContent);
}

export function show(view, blob, name, live, again = false) {
  const first = !state.view || document.body.dataset.state !== "shown";
  const resized = !state.view || state.view.width !== view.width || state.view.height !== view.height;
  Object.assign(state, {view, blob, name});
  if (resized) setPosition(null);
  document.body.dataset.state = "shown";
  $("welcome").hidden = true;
  $("panes").hidden = $("readout").hidden = false;
  $("compare").hidden = state.info.models.length < 2;
  document.body.classList.toggle("comparing", state.info.models.length > 1);
  arrange();
  $("panes").style.setProperty("--aspect", view.width / view.height);
  const [height, width] = view.fullSize;
  const smaller = view.width !== width ? `, shown at ${view.width} × ${view.height}` : "";
  $("size").textContent = `${width} × ${height}${smaller}`;
  showFilm();
  showDifference();
  repaint("image", "depth", "normals", "cutout", "points");
  showValues();
  if (!live) {
    const times = view.models.map((model) => `${model.milliseconds.toFixed(0)} ms`).join(" | ");
    $("status").textContent = `Model: ${times}`;
    if (giving("points").length && !again) state.cloud.sweep();
    if (first) $("main").focus({preventScroll: true});
  }
}

// Which pictures, controls and files there are depends on what the models give.
function arrange() {
  const {models} = state.view;
  for (const figure of document.querySelectorAll("[data-pane]")) {
    const name = figure.dataset.pane;
    const found = giving(name);
    figure.hidden = !found.length;
    const only = figure.querySelector(".only");
    if (only) only.textContent = found.length && found.length < models.length ? `only ${found[0].label}` : "";
  }
  for (const element of document.querySelectorAll("[data-needs]")) {
    element.hidden = !models.some((model) => model[element.dataset.needs]);
  }
  const points = giving("points");
  $("panes").classList.toggle("flat", !points.length);
  if (points.length && !state.cloud) state.cloud = new Cloud($("cloud"), $("cloud-note"));
  const depths = giving("depth");
  const [depth] = depths;
  if (!depth) return;
  $("depth-title").textContent = depthName([depth]);
  document.querySelector("[data-file='depth.png']").hidden = !depth.metric;
  const unscaled = state.view.canonical && state.view.guessed; // as the server writes it, not by a guess
  document.querySelector("[data-file='depth.exr']").title =
    !depth.metric ? "OpenEXR, without unit" : unscaled ? "OpenEXR, for the focal length that it names" : "OpenEXR, metres";
  ["near", "far"].forEach((id, i) => {
    const texts = depths.map((model) => depthText(model.range[i], model.metric, 2));
    $(id).textContent = [...new Set(texts)].join(" | "); // two models in metres share one
  });
}

function showDifference() {
  const list = $("difference");
  list.replaceChildren();
  const found = state.view.difference;
  const rows = found ? differenceRows(found, state.view.models) : [];
  if (found && !rows.length) rows.push(["Difference", "the models have no map in common"]);
  for (const [name, text] of rows) {
    const row = append(list, "div");
    append(row, "dt", "", name);
    append(row, "dd", "", text);
  }
}

export function setPosition(position) {
  state.position = position;
  for (const pane of Object.values(panes)) pane.setPosition(position);
  showValues();
}

function showValues() {
  const {view, position} = state;
  const line = $("values");
  line.replaceChildren();
  if (!view) return;
  if (!position) {
    append(line, "span", "faint", "Point at a picture to read its values.");
    return;
  }
  const [x, y] = position;
  const rows = [["Pixel", `${x}, ${y}`], ...valuesAt(view.models, y * view.width + x)];
  for (const [name, text] of rows) {
    const span = append(line, "span");
    append(span, "i", "", name);
    span.append(text);
  }
  for (const pane of Object.values(panes)) pane.setLabel(rows.map((row) => row.join(" ")).join(", "));
}

export function setWipe(share) {
  state.wipe = share;
  $("wipe").value = Math.round(100 * share);
  for (const pane of Object.values(panes)) pane.setWipe(share);
  if (state.view && state.view.models.length > 1) repaint("points");
}

export function setLight(x, y, z = state.light.z) {
  state.light = {x, y, z};
  for (const [axis, value] of Object.entries(state.light)) $(`light-${axis}`).value = Math.round(100 * value);
  placeSun();
  repaint("normals");
}

// The lamp's place over the picture, whose longer side spans -1 to 1.
export function placeSun() {
  const {view, light, mode} = state;
  state.sun.hidden = mode === "colours" || !view;
  if (state.sun.hidden) return;
  const longest = Math.max(view.width, view.height);
  state.sun.style.left = `${50 + 50 * light.x * longest / view.width}%`;
  state.sun.style.top = `${50 - 50 * light.y * longest / view.height}%`;
}
