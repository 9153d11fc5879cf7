// The hits of a search, best first, each with a small picture that the server makes of the indexed file.

import { element } from "./element.js";
import { timeLine } from "./scores.js";
import { send } from "./server.js";
import { speak } from "./words.js";

const AT_ONCE = 4;

let addresses = [];

// hits: [{row, path, score}]; thumbnail(hit): the address of its picture
export function showHits(root, { hits, times, emulated, thumbnail, signal }) {
  forget();
  const views = [];
  const items = hits.map((hit) => {
    const view = element("span", { class: "view" }, "…");
    views.push([hit, view]);
    const similarity = speak(element("p", { class: "similarity" }), "similarity", hit.score.toFixed(3).replace("-", "\u2212"));
    return element("li", {}, view, ...nameAndFolder(hit.path), similarity);
  });
  root.replaceChildren(element("ol", { class: "hits", role: "list" }, ...items), timeLine(times, emulated));
  const next = async () => {
    for (let job = views.shift(); job && !signal.aborted; job = views.shift()) await load(job, thumbnail, signal);
  };
  return Promise.all(Array.from({ length: AT_ONCE }, next));
}

// The name of the file, and the folder in small print.
function nameAndFolder(path) {
  const place = path.lastIndexOf("/") + 1;
  const name = element("p", { class: "file" }, path.slice(place));
  return place > 1 ? [name, element("p", { class: "faint" }, path.slice(0, place - 1))] : [name];
}

// Remove the pictures of the last search from memory.
export function forget() {
  for (const address of addresses) URL.revokeObjectURL(address);
  addresses = [];
}

// Through fetch, since an <img> cannot send the API key.
async function load([hit, view], thumbnail, signal) {
  try {
    const { response } = await send(thumbnail(hit), { signal });
    const address = URL.createObjectURL(await response.blob());
    addresses.push(address);
    view.replaceWith(element("img", { class: "view", src: address, alt: "" }));
  } catch {
    speak(view, "noPicture");
  }
}
