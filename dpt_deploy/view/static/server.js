// Requests to the server. Every failure becomes an Error whose message is a sentence for the page.

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Look whether dpt view still runs in its terminal, then try again.");
  }
  if (response.ok) return response;
  let sentence = `The server answered with status ${response.status}.`;
  try {
    sentence = (await response.json()).error || sentence;
  } catch { /* not ours: the status is all there is */ }
  throw Object.assign(new Error(sentence), {status: response.status});
}

function upload(path, blob, signal) {
  return ask(path, {method: "POST", body: blob, signal, headers: {"Content-Type": "application/octet-stream"}});
}

export async function info() {
  return (await ask("/api/info")).json();
}

export async function predict(blob, choices, signal) {
  return (await upload(`/api/predict?${new URLSearchParams(choices)}`, blob, signal)).arrayBuffer();
}

// Has the server make a file from the image, and gives it to the browser under its name.
export async function download(blob, file, name, choices) {
  const made = await (await upload(`/api/download/${file}?${new URLSearchParams(choices)}`, blob)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(made);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
