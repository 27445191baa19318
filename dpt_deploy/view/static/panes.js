// One picture of the page: a canvas with a layer for each model, a wipe between them, and a mark at the point that is read.

const STEP = 0.01; // of the longer side; Shift moves ten times as far

export class Pane {
  // onPoint(x, y) gets a position in pixels of the image; onWipe(share) where the wipe was dragged to; onDrag(x, y), if
  // set, takes presses and drags instead.
  constructor(figure, {onPoint, onWipe}) {
    this.figure = figure;
    this.stage = figure.querySelector(".stage");
    this.frame = append(this.stage, "div", "frame");
    this.canvas = append(this.frame, "canvas");
    this.mark = append(this.frame, "div", "mark-point");
    this.line = append(this.frame, "div", "wipe-line");
    this.mark.hidden = this.line.hidden = true;
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.name = figure.querySelector("h2").textContent;
    this.setLabel("Read its values with the arrow keys.");
    this.layers = [];
    this.onDrag = null;
    this.wipe = 0.5;
    this.position = null;
    this.listen(onPoint, onWipe);
  }

  listen(onPoint, onWipe) {
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const inside = (value, size) => Math.min(size - 1, Math.max(0, Math.floor(value * size)));
      return [inside((event.clientX - box.left) / box.width, this.canvas.width),
        inside((event.clientY - box.top) / box.height, this.canvas.height)];
    };
    let dragging = false;
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      dragging = true;
      if (event.pointerType === "mouse") this.canvas.setPointerCapture(event.pointerId);
      onPoint(...at(event));
      if (this.onDrag) this.onDrag(...at(event));
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" || dragging) onPoint(...at(event));
      if (dragging && this.onDrag) this.onDrag(...at(event));
    });
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => { dragging = false; });
    this.canvas.addEventListener("keydown", (event) => {
      const [dx, dy] = ARROWS[event.key] || [0, 0];
      if (!dx && !dy || !this.layers.length) return;
      event.preventDefault();
      const {width, height} = this.canvas;
      const step = Math.max(1, Math.round(Math.max(width, height) * STEP * (event.shiftKey ? 10 : 1)));
      const [x, y] = this.position || [width >> 1, height >> 1];
      onPoint(Math.min(width - 1, Math.max(0, x + dx * step)), Math.min(height - 1, Math.max(0, y + dy * step)));
    });
    const drag = (event) => {
      const box = this.canvas.getBoundingClientRect();
      onWipe(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
    };
    this.line.addEventListener("pointerdown", (event) => { this.line.setPointerCapture(event.pointerId); drag(event); });
    this.line.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); else onPoint(...at(event)); });
  }

  // A layer for each model; paint(out, model) fills the RGBA pixels of one.
  show(view, models, paint) {
    const {width, height} = view;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, {width, height});
    this.layers = models.map((model, i) => {
      const layer = this.layers[i] && this.layers[i].width === width && this.layers[i].height === height
        ? this.layers[i] : new OffscreenCanvas(width, height);
      const pixels = new ImageData(width, height);
      paint(pixels.data, model);
      layer.getContext("2d").putImageData(pixels, 0, 0);
      return layer;
    });
    this.draw();
  }

  // A picture that is the same for all models.
  showPicture(view) {
    Object.assign(this.canvas, {width: view.width, height: view.height});
    this.layers = [view.canvas];
    this.draw();
  }

  draw() {
    const {width, height} = this.canvas;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const [first, second] = this.layers;
    const split = second ? Math.round(this.wipe * width) : width;
    if (first && split > 0) context.drawImage(first, 0, 0, split, height, 0, 0, split, height);
    if (second && split < width) {
      context.drawImage(second, split, 0, width - split, height, split, 0, width - split, height);
    }
    this.line.hidden = !second;
    this.line.style.left = `${100 * this.wipe}%`;
  }

  setWipe(share) {
    this.wipe = share;
    if (this.layers.length > 1) this.draw();
  }

  setPosition(position) {
    this.position = position;
    this.mark.hidden = !position;
    if (!position) return;
    this.mark.style.left = `${100 * (position[0] + 0.5) / this.canvas.width}%`;
    this.mark.style.top = `${100 * (position[1] + 0.5) / this.canvas.height}%`;
  }

  setLabel(text) {
    this.canvas.setAttribute("aria-label", `${this.name}. ${text}`);
  }
}

export const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

export function append(parent, tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}
