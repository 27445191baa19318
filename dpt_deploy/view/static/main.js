// The page: where images come from, what the controls do, and how it starts.

import {read} from "./answer.js";
import {Camera} from "./camera.js";
import {append, Pane} from "./panes.js";
import {download, info, predict} from "./server.js";
import {placeSun, repaint, setLight, setPosition, setWipe, show, showFilm} from "./showing.js";
import {$, asked, gives, panes, state} from "./state.js";
import {bytes, promise} from "./text.js";
import {theme} from "./theme.js";

let request = null; // the one that is on its way

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

// Shows an image file, or the one that is shown once more. A newer one takes the place of one that is on its way.
async function open(blob, name = "image", again = false) {
  if (blob.size > state.info.max_bytes) {
    return problem(`This file has ${bytes(blob.size)}, and the limit is ${bytes(state.info.max_bytes)}. Choose a smaller one.`);
  }
  if (camera.running && !again) stopCamera();
  if (request) request.abort();
  problem("");
  const mine = request = new AbortController();
  busy(true);
  try {
    if (!again) await readable(blob);
    const choices = asked({compare: state.compare ? 1 : 0}, again ? state.film : null);
    const view = await read(await predict(blob, choices, mine.signal));
    if (request !== mine || mine.signal.aborted) return;
    if (!again) state.film = null; // that of the image before was its own
    show(view, blob, name, false, again);
  } catch (error) {
    if (request === mine && error.name !== "AbortError") problem(error.message);
  } finally {
    if (request === mine) { request = null; busy(false); }
  }
}

// A folder looks like a file until it is read, and a file may be gone.
async function readable(blob) {
  try {
    await blob.slice(0, 1).arrayBuffer();
  } catch {
    throw new Error("This cannot be read: it is a folder, or a file that is gone. Choose an image file.");
  }
}

// Asks again for the image that is shown, or the frame that is frozen; the next live frame is asked for in any case.
function refresh() {
  if (state.blob && (!camera.running || frozen)) open(state.blob, state.name, true);
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
    const pane = button.closest("[data-pane]").dataset.pane;
    const model = state.view.models.findIndex((one) => gives(one, pane));
    const choices = asked({threshold: state.threshold, soft: state.soft ? 1 : 0, model});
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
}, () => {
  stopCamera();
  problem("The camera was disconnected. Connect it and start it again, or choose an image.");
});

async function toggleCamera() {
  if (camera.running) return stopCamera();
  problem("");
  busy(true);
  frozen = false;
  try {
    const started = camera.start();
    cameraButtons();
    if (!await started) return;
  } catch (error) {
    cameraButtons();
    return problem(error.message);
  } finally {
    busy(request !== null);
  }
  if (request) request.abort();
  state.film = null; // that of the image before was its own
  shownFrames = [];
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
  if (!frozen && request) request.abort(); // what was asked of the frozen frame
  cameraButtons();
  camera.paused = frozen;
}

function cameraButtons() {
  $("camera").textContent = camera.running ? "Stop camera" : "Camera";
  $("camera").setAttribute("aria-pressed", camera.running);
  $("freeze").hidden = !camera.stream;
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
  $("reset").addEventListener("click", () => state.cloud.reset());
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

// ---- Start ---------------------------------------------------------------------------------------------------------

async function start() {
  theme($("theme"));
  try {
    state.info = await info();
  } catch (error) {
    return problem(error.message);
  }
  const {models, bundle, assumed} = state.info;
  const labels = models.map((model) => model.label), summaries = models.map((model) => model.summary);
  state.colours = Uint8Array.from(atob(state.info.colours), (letter) => letter.charCodeAt(0));
  $("model").textContent = `${bundle}: ${summaries.join("  |  ")}`;
  $("model").title = [...summaries, ...assumed].join("\n");
  document.title = `${bundle}, dpt view`;
  const options = {onPoint: (x, y) => setPosition([x, y]), onWipe: setWipe};
  for (const figure of document.querySelectorAll("[data-pane]")) {
    if (figure.dataset.pane !== "points") panes[figure.dataset.pane] = new Pane(figure, options);
  }
  state.sun = append(panes.normals.frame, "div", "sun");
  state.sun.hidden = true;
  $("promise").textContent = promise(models);
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
