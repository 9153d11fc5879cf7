// What the user chose, kept in the part of the address after "#", which a browser never sends to a server.

const DEFAULTS = { task: "classify", bundle: "", labels: "", templates: "", template: "a photo of a {}.", top: "5", query: "", hits: "12", path: "", lang: "" };

const PAUSE_MS = 400; // browsers refuse an address that changes with every key

let changes = {};
let timer = 0;

export function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, changes[name] ?? given.get(name) ?? value]));
}

export function writeState(given) {
  changes = { ...changes, ...given };
  if (!timer) flush();
}

function flush() {
  timer = 0;
  const chosen = Object.entries(readState()).filter(([name, value]) => value !== DEFAULTS[name]);
  const hash = new URLSearchParams(chosen).toString();
  changes = {};
  if (hash === location.hash.slice(1)) return;
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  timer = setTimeout(flush, PAUSE_MS);
}

addEventListener("pagehide", flush);

// One label a line; a single line may have commas (also Chinese ones) between labels. Repeated ones count once.
export function splitLabels(text) {
  const lines = text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  const labels = lines.length === 1 ? lines[0].split(/[,，、;；]/).map((label) => label.trim()).filter(Boolean) : lines;
  return [...new Set(labels)];
}
