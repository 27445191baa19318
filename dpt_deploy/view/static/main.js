// The page: what is shown, what the controls say, and where images come from.

import {read} from "./answer.js";
import {Camera} from "./camera.js";
import {Cloud} from "./cloud.js";
import {paintCutout, paintDepth, paintLight, paintNormals, solid} from "./painters.js";
import {append, Pane} from "./panes.js";
import {download, info, predict} from "./server.js";
import {bytes, differenceRows, valuesAt} from "./text.js";

const FILM_DIAGONAL = 43.2666; // of a 35 mm film frame [mm]
const $ = (id) => document.getElementById(id);
const state = {
  info: null, view: null, blob: null, name: "image", compare: false, wipe: 0.5, position: null, mode: "colours", paint: "photo",
  fade: true, threshold: 0.5, soft: true, film: null, light: {x: -0.6, y: 0.7, z: 0.6}, colours: null,
};
// state.film is the focal length [mm on 35 mm film] that was set here; null is that of the image, or the server's guess.
const asked = (choices) => state.film === null ? choices : {...choices, film: state.film};
const panes = {};
let cloud, sun, request = null;

// ---- Showing -------------------------------------------------------------------------------------------------------

const painting = {
  image: (pane, view) => pane.showPicture(view),
  depth: (pane, view) => pane.show(view, view.models, (out, model) =>
    paintDepth(out, model, view.depthRange, state.colours, state.fade)),
  normals: (pane, view) => pane.show(view, view.models, (out, model) => {
    if (state.mode === "colours") return paintNormals(out, model, state.fade);
    return paintLight(out, model, view.photo, view.width, view.height, state.light, state.mode === "clay", state.fade);
  }),
  cutout: (pane, view) => pane.show(view, view.models, (out, model) =>
    paintCutout(out, model, view.photo, state.threshold, state.soft)),
  points: (_pane, view) => showPoints(view),
};
const dirty = new Set();

function repaint(...names) {
  if (!dirty.size) requestAnimationFrame(() => {
    const now = [...dirty];
    dirty.clear();
    for (const name of now) if (state.view && has(name)) painting[name](panes[name], state.view);
  });
  for (const name of names) dirty.add(name);
}

const HEAD = {depth: "depth", normals: "normals", cutout: "alpha", points: "depth"};
const has = (name) => !HEAD[name] || state.info.heads.includes(HEAD[name]);

function showPoints(view) {
  const [first, second = first] = view.models;
  const split = second === first ? view.width : state.wipe * view.width;
  const of = (i) => i % view.width < split ? first : second;
  const [near, far] = view.depthRange;
  const paint = {
    photo: (i, out, j) => { for (let c = 0; c < 3; c++) out[j + c] = view.photo[4 * i + c]; },
    depth: (i, out, j) => {
      const share = (far - of(i).depth[i] / 1000) / (far - near);
      const level = 3 * Math.round(255 * Math.min(1, Math.max(0, share)));
      for (let c = 0; c < 3; c++) out[j + c] = state.colours[level + c];
    },
    normals: (i, out, j) => { for (let c = 0; c < 3; c++) out[j + c] = 127.5 + 127.5 * of(i).normals[3 * i + c]; },
  }[state.paint];
  const focal = (state.film ?? view.film) * Math.hypot(view.width, view.height) / FILM_DIAGONAL;
  cloud.show(view, focal, (i) => of(i).depth[i], (i, out, j) => {
    paint(i, out, j);
    const {alpha} = of(i);
    out[j + 3] = !alpha || alpha[i] / 255 >= solid(state.threshold) ? 255 : 0;
  });
}

function showFilm() {
  const {view, film} = state;
  const source = film !== null ? "as set" : view.guessed ? "a guess" : "from the photo";
  $("film-source").textContent = `Focal length, ${source}`;
  if (film === null) $("film").value = Math.round(view.film);
  $("film-value").textContent = `${Math.round(film ?? view.film)} mm`;
  $("film").setAttribute("aria-valuetext", $("film-value").textContent);
}

function show(view, blob, name, live, again = false) {
  const first = !state.view || document.body.dataset.state !== "shown";
  const resized = !state.view || state.view.width !== view.width || state.view.height !== view.height;
  Object.assign(state, {view, blob, name});
  if (resized) setPosition(null);
  document.body.dataset.state = "shown";
  $("welcome").hidden = true;
  $("panes").hidden = $("readout").hidden = false;
  $("compare").hidden = state.info.labels.length < 2;
  document.body.classList.toggle("comparing", state.info.labels.length > 1);
  $("panes").style.setProperty("--aspect", view.width / view.height);
  const [height, width] = view.fullSize;
  const smaller = view.width !== width ? `, shown at ${view.width} × ${view.height}` : "";
  $("size").textContent = `${width} × ${height}${smaller}`;
  if (view.depthRange) {
    $("near").textContent = `${view.depthRange[0].toFixed(2)} m`;
    $("far").textContent = `${view.depthRange[1].toFixed(2)} m`;
  }
  showFilm();
  showDifference();
  repaint("image", "depth", "normals", "cutout", "points");
  showValues();
  if (!live) {
    const times = view.models.map((model) => `${model.milliseconds.toFixed(0)} ms`).join(" | ");
    $("status").textContent = `Model: ${times}`;
    if (cloud && has("points") && !again) cloud.sweep();
    if (first) $("main").focus({preventScroll: true});
  }
}

function showDifference() {
  const list = $("difference");
  list.replaceChildren();
  const found = state.view.difference;
  const rows = found ? differenceRows(found) : [];
  if (found && !rows.length) rows.push(["Difference", "the models have no map in common"]);
  for (const [name, text] of rows) {
    const row = append(list, "div");
    append(row, "dt", "", name);
    append(row, "dd", "", text);
  }
}

function setPosition(position) {
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

function setWipe(share) {
  state.wipe = share;
  $("wipe").value = Math.round(100 * share);
  for (const pane of Object.values(panes)) pane.setWipe(share);
  if (state.view && state.view.models.length > 1) repaint("points");
}

function setLight(x, y, z = state.light.z) {
  state.light = {x, y, z};
  for (const [axis, value] of Object.entries(state.light)) $(`light-${axis}`).value = Math.round(100 * value);
  placeSun();
  repaint("normals");
}

// The lamp's place over the picture, whose longer side spans -1 to 1.
function placeSun() {
  const {view, light, mode} = state;
  sun.hidden = mode === "colours" || !view;
  if (sun.hidden) return;
  const longest = Math.max(view.width, view.height);
  sun.style.left = `${50 + 50 * light.x * longest / view.width}%`;
  sun.style.top = `${50 - 50 * light.y * longest / view.height}%`;
}

// ---- Errors and waiting --------------------------------------------------------------------------------------------

function problem(sentence) {
  $("problem").hidden = !sentence;
  $("problem").firstElementChild.textContent = sentence || "";
}

function busy(waiting) {
  $("busy").hidden = !waiting;
  $("main").setAttribute("aria-busy", waiting);
}

// ---- Images in, files out ------------------------------------------------------------------------------------------

// Shows an image file. A newer one takes the place of one that is on its way.
async function open(blob, name = "image", again = false) {
  if (!again) state.film = null;
  if (camera.running) stopCamera();
  if (request) request.abort();
  if (blob.size > state.info.max_bytes) {
    return problem(`This file has ${bytes(blob.size)}, and the limit is ${bytes(state.info.max_bytes)}. Choose a smaller one.`);
  }
  problem("");
  const mine = request = new AbortController();
  busy(true);
  try {
    const view = await read(await predict(blob, asked({compare: state.compare ? 1 : 0}), mine.signal));
    if (request === mine) show(view, blob, name, false, again);
  } catch (error) {
    if (request === mine && error.name !== "AbortError") problem(error.message);
  } finally {
    if (request === mine) { request = null; busy(false); }
  }
}

// Asks again for the image that is shown.
function refresh() {
  if (state.blob && !camera.running) open(state.blob, state.name, true);
}

function openFiles(files) {
  if (!files.length) return problem("There was no image in what was dropped. Drop an image file.");
  const [file] = files;
  open(file, file.name.replace(/\.[^.]*$/, "") || "image");
}

async function save(button) {
  if (!state.blob) return;
  const file = button.dataset.file;
  button.disabled = true;
  busy(true);
  try {
    const choices = asked({threshold: state.threshold, soft: state.soft ? 1 : 0});
    await download(state.blob, file, `${state.name}.${file}`, choices);
    problem("");
  } catch (error) {
    problem(error.message);
  }
  button.disabled = false;
  busy(request !== null);
}

// ---- The camera ----------------------------------------------------------------------------------------------------

let shownFrames = [];
let frozen = false;
const camera = new Camera(async (blob) => {
  try {
    const view = await read(await predict(blob, asked({compare: state.compare ? 1 : 0, live: 1})));
    if (!camera.running || frozen) return;
    show(view, blob, "camera", true);
    shownFrames = [...shownFrames, performance.now()].slice(-11);
    const seconds = (shownFrames.at(-1) - shownFrames[0]) / 1000;
    const rate = seconds ? `${((shownFrames.length - 1) / seconds).toFixed(1)} frames/s, ` : "";
    $("status").textContent = `Live: ${rate}model ${view.models[0].milliseconds.toFixed(0)} ms`;
  } catch (error) {
    if (error.status === 503) return new Promise((done) => setTimeout(done, 500));
    if (camera.running && !frozen) { stopCamera(); problem(error.message); }
  }
});

async function toggleCamera() {
  if (camera.running) return stopCamera();
  problem("");
  busy(true);
  try {
    await camera.start();
  } catch (error) {
    problem(error.message);
    return;
  } finally {
    busy(false);
  }
  if (request) request.abort();
  shownFrames = [];
  frozen = false;
  cameraButtons();
  camera.loop();
}

function stopCamera() {
  camera.stop();
  frozen = false;
  if (state.view) $("status").textContent = "Camera off";
  cameraButtons();
}

// The frame that is shown stays, to look at it and to save its files; the next press goes on.
function toggleFreeze() {
  frozen = !frozen;
  cameraButtons();
  camera.paused = frozen;
}

function cameraButtons() {
  $("camera").textContent = camera.running ? "Stop camera" : "Camera";
  $("camera").setAttribute("aria-pressed", camera.running);
  $("freeze").hidden = !camera.running;
  $("freeze").setAttribute("aria-pressed", frozen);
  $("freeze").textContent = frozen ? "Go on" : "Freeze";
}

// ---- Controls ------------------------------------------------------------------------------------------------------

function segments(id, choose) {
  for (const button of $(id).children) {
    button.addEventListener("click", () => {
      for (const one of $(id).children) one.setAttribute("aria-pressed", one === button);
      choose(button.dataset.mode);
    });
  }
}

function slider(id, unit, change) {
  const input = $(id), output = document.querySelector(`output[for="${id}"]`);
  const update = () => {
    if (output) output.textContent = input.value + unit;
    input.setAttribute("aria-valuetext", input.value + unit);
    change(Number(input.value));
  };
  input.addEventListener("input", update);
  update();
}

function listen() {
  for (const id of ["choose", "choose2"]) $(id).addEventListener("click", () => $("file").click());
  for (const id of ["camera", "camera2"]) $(id).addEventListener("click", toggleCamera);
  $("freeze").addEventListener("click", toggleFreeze);
  $("file").addEventListener("change", () => {
    if ($("file").files.length) openFiles([...$("file").files]);
    $("file").value = "";
  });
  $("problem").querySelector("button").addEventListener("click", () => problem(""));
  for (const button of document.querySelectorAll("[data-file]")) button.addEventListener("click", () => save(button));

  slider("threshold", " %", (value) => { state.threshold = value / 100; repaint("cutout", "points"); });
  slider("wipe", " %", (value) => setWipe(value / 100));
  for (const axis of ["x", "y", "z"]) {
    slider(`light-${axis}`, "", (value) => { setLight(...Object.values({...state.light, [axis]: value / 100})); });
  }
  $("film").addEventListener("input", () => {
    state.film = Number($("film").value);
    showFilm();
    repaint("points");
  });
  $("film").addEventListener("change", () => { if (state.view.canonical) refresh(); });
  $("soft").addEventListener("change", () => { state.soft = $("soft").checked; repaint("cutout"); });
  $("fade").addEventListener("change", () => { state.fade = $("fade").checked; repaint("depth", "normals"); });
  segments("mode", (mode) => {
    state.mode = mode;
    $("lights").hidden = mode === "colours";
    panes.normals.onDrag = mode === "colours" ? null : moveLight;
    panes.normals.stage.classList.toggle("deep", mode !== "colours"); // light fades into the dark
    placeSun();
    repaint("normals");
  });
  segments("paint", (mode) => { state.paint = mode; repaint("points"); });
  for (const input of document.getElementsByName("backdrop")) {
    input.addEventListener("change", () => { panes.cutout.stage.className = `stage ${input.value}`; });
  }
  $("reset").addEventListener("click", () => cloud.reset());
  $("comparing").addEventListener("change", () => {
    state.compare = $("comparing").checked;
    refresh();
  });

  window.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData ? event.clipboardData.files : [])];
    if (files.length) openFiles(files);
  });
  let depth = 0; // how many elements the pointer is inside of while it drags
  const carries = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  window.addEventListener("dragenter", (event) => { if (carries(event)) $("veil").hidden = ++depth === 0; });
  window.addEventListener("dragleave", (event) => { if (carries(event) && --depth <= 0) { depth = 0; $("veil").hidden = true; } });
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    $("veil").hidden = true;
    openFiles([...event.dataTransfer.files]);
  });
}

function moveLight(x, y) {
  const {width, height} = state.view;
  const longest = Math.max(width, height);
  setLight((2 * x - width) / longest, (height - 2 * y) / longest);
}

// ---- Light and dark ------------------------------------------------------------------------------------------------

function theme() {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("theme"); } catch { /* storage is off */ }
  const apply = () => {
    const dark = chosen ? chosen === "dark" : system.matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    $("theme").setAttribute("aria-label", dark ? "Switch to light colours" : "Switch to dark colours");
  };
  system.addEventListener("change", apply);
  $("theme").addEventListener("click", () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", chosen); } catch { /* storage is off */ }
    apply();
  });
  apply();
}

// ---- Start ---------------------------------------------------------------------------------------------------------

async function start() {
  theme();
  try {
    state.info = await info();
  } catch (error) {
    return problem(error.message);
  }
  const {labels, summaries, bundle, heads, assumed} = state.info;
  state.colours = Uint8Array.from(atob(state.info.colours), (letter) => letter.charCodeAt(0));
  $("model").textContent = `${bundle}: ${summaries.join("  |  ")}`;
  $("model").title = [...summaries, ...assumed].join("\n");
  document.title = `${bundle}, dpt view`;
  const options = {onPoint: (x, y) => setPosition([x, y]), onWipe: setWipe};
  for (const figure of document.querySelectorAll("[data-pane]")) {
    figure.hidden = Boolean(figure.dataset.head && !heads.includes(figure.dataset.head));
    if (figure.dataset.pane !== "points") panes[figure.dataset.pane] = new Pane(figure, options);
  }
  for (const element of document.querySelectorAll("[data-needs]")) element.hidden = !heads.includes(element.dataset.needs);
  $("panes").classList.toggle("flat", !has("points"));
  sun = append(panes.normals.frame, "div", "sun");
  sun.hidden = true;
  if (has("points")) cloud = new Cloud($("cloud"), $("cloud-note"));
  if (labels.length > 1) {
    state.compare = true;
    $("label-a").textContent = labels[0];
    $("label-b").textContent = labels[1];
  }
  drawScale();
  listen();
  document.body.dataset.ready = "true";
}

function drawScale() {
  const context = $("scale").getContext("2d");
  const pixels = context.createImageData(256, 1);
  for (let i = 0; i < 256; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = state.colours[3 * (255 - i) + c];
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

start();
