// The point cloud: every pixel that is foreground, placed by its depth and an assumed focal length, in WebGL 2.

import {ARROWS} from "./panes.js";

const MOST_POINTS = 400000;
const FIELD = 0.6; // of the viewer's camera, vertical [radians]
const HOME = {yaw: 0.38, pitch: 0.1, zoom: 1};
const SLOPE = Math.tan(85 * Math.PI / 180); // steeper steps are edges between two surfaces, as in dpt_deploy/geometry

const VERTEX = `#version 300 es
in float depth; in vec4 colour;
uniform int columns; uniform float stride; uniform vec2 size; uniform float focal;
uniform vec3 pivot; uniform mat3 turn; uniform float distance; uniform vec2 lens; uniform float range; uniform float dots;
out vec3 tint;
void main() {
  float row = float(gl_VertexID / columns), column = float(gl_VertexID % columns);
  float z = depth / 1000.0;
  vec2 pixel = vec2(column, row) * stride + 0.5;
  vec3 point = vec3((pixel.x - size.x / 2.0) / focal * z, (size.y / 2.0 - pixel.y) / focal * z, -z);
  vec3 seen = turn * (point - pivot);
  seen.z -= distance;
  float near = distance * 0.02, far = distance + 4.0 * range;
  gl_Position = vec4(seen.xy * lens, (-seen.z * (far + near) - 2.0 * far * near) / (far - near), -seen.z);
  gl_PointSize = clamp(dots * z / -seen.z, 1.0, 14.0);
  tint = colour.rgb;
  if (depth == 0.0 || colour.a == 0.0) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec3 tint; out vec4 result;
void main() { result = vec4(tint, 1.0); }`;

export class Cloud {
  constructor(canvas, note) {
    this.canvas = canvas;
    this.note = note;
    this.gl = canvas.getContext("webgl2", {antialias: true, alpha: true, powerPreference: "low-power"});
    this.home();
    this.count = 0;
    this.focal = 1;
    this.waiting = 0;
    if (!this.gl) {
      this.say("This browser offers no WebGL 2, so there is no 3-D view. The PLY file has the points.");
      return;
    }
    canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); this.program = null; });
    canvas.addEventListener("webglcontextrestored", () => { this.prepare(); this.upload(); });
    this.prepare();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  say(text) {
    this.note.textContent = text;
    this.note.hidden = !text;
  }

  home() {
    Object.assign(this, HOME);
  }

  prepare() {
    const gl = this.gl;
    const compile = (kind, source) => {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      return shader;
    };
    const program = gl.createProgram();
    gl.attachShader(program, compile(gl.VERTEX_SHADER, VERTEX));
    gl.attachShader(program, compile(gl.FRAGMENT_SHADER, FRAGMENT));
    gl.bindAttribLocation(program, 0, "depth");
    gl.bindAttribLocation(program, 1, "colour");
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
      this.say("The 3-D view cannot run in this browser. The PLY file has the points.");
      return;
    }
    this.program = program;
    this.at = (name) => gl.getUniformLocation(program, name);
    this.buffers = [gl.createBuffer(), gl.createBuffer()];
  }

  // focal [pixels]; depth(i) [mm, 0 for none]; tint(i, out, j) writes RGB and 255, or 0 for a point that is cut away.
  show(view, focal, depth, tint) {
    this.focal = focal;
    const {width, height} = view;
    this.stride = Math.max(1, Math.ceil(Math.sqrt(width * height / MOST_POINTS)));
    this.columns = Math.ceil(width / this.stride);
    const rows = Math.ceil(height / this.stride);
    this.size = [width, height];
    this.count = this.columns * rows;
    this.depths = new Uint16Array(this.count);
    this.tints = new Uint8Array(4 * this.count);
    for (let row = 0, k = 0; row < rows; row++) {
      for (let column = 0; column < this.columns; column++, k++) {
        const i = row * this.stride * width + column * this.stride;
        this.depths[k] = depth(i);
        tint(i, this.tints, 4 * k);
      }
    }
    this.dropEdges();
    this.measure();
    this.upload();
  }

  // Predicted depth passes over an edge in several pixels, and none of those between belongs to a surface.
  dropEdges() {
    const {depths, tints, columns} = this;
    const slope = SLOPE * this.stride / this.focal;
    const check = (k, other) => {
      if (!depths[k] || !depths[other]) return;
      if (Math.abs(depths[k] - depths[other]) <= slope * Math.min(depths[k], depths[other])) return;
      tints[4 * k + 3] = tints[4 * other + 3] = 0;
    };
    for (let k = 0; k < this.count; k++) {
      if (k % columns) check(k, k - 1);
      if (k >= columns) check(k, k - columns);
    }
  }

  // The middle of the points, in units that do not depend on the focal length, and their extent.
  measure() {
    const kept = [];
    const step = Math.max(1, Math.floor(this.count / 20000));
    for (let k = 0; k < this.count; k += step) {
      if (this.depths[k] && this.tints[4 * k + 3]) kept.push(k);
    }
    const z = kept.map((k) => this.depths[k] / 1000).sort((a, b) => a - b);
    const share = (p) => z[Math.min(z.length - 1, Math.floor(p * z.length))] || 1;
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const k of kept) {
      const column = (k % this.columns) * this.stride - this.size[0] / 2;
      const row = Math.floor(k / this.columns) * this.stride - this.size[1] / 2;
      [left, right] = [Math.min(left, column), Math.max(right, column)];
      [top, bottom] = [Math.min(top, row), Math.max(bottom, row)];
    }
    this.some = kept.length > 0;
    this.extent = {z: share(0.5), depth: share(0.98) - share(0.02), x: (left + right) / 2, y: (top + bottom) / 2,
      width: right - left, height: bottom - top};
    this.say(this.some ? "" : "No point is left. Lower the threshold of the cut-out.");
  }

  upload() {
    const gl = this.gl;
    if (!gl || !this.program || !this.count) return;
    const [depths, tints] = this.buffers;
    gl.bindBuffer(gl.ARRAY_BUFFER, depths);
    gl.bufferData(gl.ARRAY_BUFFER, this.depths, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 1, gl.UNSIGNED_SHORT, false, 0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, tints);
    gl.bufferData(gl.ARRAY_BUFFER, this.tints, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(1);
    gl.vertexAttribPointer(1, 4, gl.UNSIGNED_BYTE, true, 0, 0);
    this.draw();
  }

  draw() {
    if (this.gl && !this.waiting) this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.render(); });
  }

  render() {
    const {gl, canvas} = this;
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const [w, h] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, {width: w, height: h});
    gl.viewport(0, 0, w, h);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (!this.program || !this.count || !this.some || !w || !h) return;
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    const {extent, focal} = this;
    const metres = extent.z / focal;
    const aspect = w / h;
    const tall = Math.max(extent.height * metres, (extent.width * metres + 0.4 * extent.depth) / aspect, 1e-3);
    const range = Math.max(tall, extent.depth);
    const distance = (0.56 * tall / Math.tan(FIELD / 2) + extent.depth / 2) / this.zoom;
    const lens = 1 / Math.tan(FIELD / 2);
    const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    gl.uniform1i(this.at("columns"), this.columns);
    gl.uniform1f(this.at("stride"), this.stride);
    gl.uniform2f(this.at("size"), ...this.size);
    gl.uniform1f(this.at("focal"), focal);
    gl.uniform3f(this.at("pivot"), extent.x * metres, -extent.y * metres, -extent.z);
    gl.uniformMatrix3fv(this.at("turn"), false, [cy, sp * sy, -cp * sy, 0, cp, sp, sy, -sp * cy, cp * cy]);
    gl.uniform1f(this.at("distance"), distance);
    gl.uniform2f(this.at("lens"), lens / aspect, lens);
    gl.uniform1f(this.at("range"), range);
    // A point covers what its pixel covered, and a little more, so that there are no gaps.
    gl.uniform1f(this.at("dots"), 2.4 * this.stride / focal * lens * h / 2);
    gl.drawArrays(gl.POINTS, 0, this.count);
  }

  turnBy(yaw, pitch) {
    this.yaw += yaw;
    this.pitch = Math.min(1.5, Math.max(-1.5, this.pitch + pitch));
    this.draw();
  }

  zoomBy(factor) {
    this.zoom = Math.min(12, Math.max(0.25, this.zoom * factor));
    this.draw();
  }

  listen() {
    const {canvas} = this;
    const held = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      held.set(event.pointerId, [event.clientX, event.clientY]);
      canvas.setPointerCapture(event.pointerId);
      this.sweeping = false;
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = held.get(event.pointerId);
      if (!last) return;
      const now = [event.clientX, event.clientY];
      if (held.size === 2) {
        const [other] = [...held].filter(([id]) => id !== event.pointerId).map(([, position]) => position);
        const apart = (position) => Math.hypot(position[0] - other[0], position[1] - other[1]) || 1;
        this.zoomBy(apart(now) / apart(last));
        this.turnBy(0, (now[1] - last[1]) * 0.004);
      } else {
        this.turnBy((now[0] - last[0]) * 0.008, (now[1] - last[1]) * 0.008);
      }
      held.set(event.pointerId, now);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => held.delete(event.pointerId));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * 0.0015));
    }, {passive: false});
    canvas.addEventListener("keydown", (event) => {
      const [dx, dy] = ARROWS[event.key] || [0, 0];
      if (dx || dy) this.turnBy(dx * 0.12, dy * 0.12);
      else if (event.key === "+" || event.key === "=") this.zoomBy(1.15);
      else if (event.key === "-") this.zoomBy(1 / 1.15);
      else if (event.key === "0") this.reset();
      else return;
      this.sweeping = false;
      event.preventDefault();
    });
  }

  reset() {
    this.home();
    this.draw();
  }

  // One slow turn from the front to the side, to show that it is a solid; none where motion is to be reduced.
  sweep() {
    this.home();
    if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) return this.draw();
    this.sweeping = true;
    const start = performance.now();
    const step = (now) => {
      if (!this.sweeping) return;
      const share = Math.min(1, (now - start) / 1800);
      this.yaw = HOME.yaw * (1 - Math.pow(1 - share, 3));
      this.draw();
      if (share < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }
}
