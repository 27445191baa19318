// What is shown, and what the controls say.

export const $ = (id) => document.getElementById(id);

export const state = {
  info: null, view: null, blob: null, name: "image", compare: false, wipe: 0.5, position: null, mode: "colours", paint: "photo",
  fade: true, threshold: 0.5, soft: true, film: null, light: {x: -0.6, y: 0.7, z: 0.6}, colours: null,
  cloud: null, sun: null, // the 3-D view, and the lamp over the normals
};
export const panes = {};

// film is the focal length [mm on 35 mm film] that was set here; null is that of the image, or the server's guess.
export const asked = (choices, film = state.film) => film === null ? choices : {...choices, film};

// What each picture needs of a model: two models need not have the same maps.
const NEEDS = {
  depth: (model) => model.depth, normals: (model) => model.normals, cutout: (model) => model.alpha,
  points: (model) => model.depth && model.metric,
};
export const gives = (model, name) => !NEEDS[name] || Boolean(NEEDS[name](model));

// The models that have what a picture shows.
export const giving = (name, view = state.view) => view ? view.models.filter((model) => gives(model, name)) : [];
