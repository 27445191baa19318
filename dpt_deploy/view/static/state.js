// What is shown, and what the controls say.

export const $ = (id) => document.getElementById(id);

export const state = {
  info: null, view: null, blob: null, name: "image", compare: false, wipe: 0.5, position: null, mode: "colours", paint: "photo",
  fade: true, threshold: 0.5, soft: true, film: null, light: {x: -0.6, y: 0.7, z: 0.6}, colours: null,
  cloud: null, sun: null, // the 3-D view, and the lamp over the normals
};
export const panes = {};

// state.film is the focal length [mm on 35 mm film] that was set here; null is that of the image, or the server's guess.
export const asked = (choices) => state.film === null ? choices : {...choices, film: state.film};

// Whether the model predicts what a picture shows.
const HEAD = {depth: "depth", normals: "normals", cutout: "alpha", points: "depth"};
export const has = (name) => !HEAD[name] || state.info.heads.includes(HEAD[name]);
