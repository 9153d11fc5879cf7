// What the user chose, kept in the part of the address after "#", which a browser never sends to a server.

const DEFAULTS = { task: "classify", bundle: "", labels: "", templates: "", template: "a photo of a {}.", top: "5", query: "", hits: "12", path: "", lang: "" };

export function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, given.get(name) ?? value]));
}

export function writeState(changes) {
  const state = { ...readState(), ...changes };
  const given = new URLSearchParams(Object.entries(state).filter(([name, value]) => name in DEFAULTS && value !== DEFAULTS[name]));
  const hash = given.toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

// One label a line; a single line may have commas (also Chinese ones) between labels. Repeated ones count once.
export function splitLabels(text) {
  const lines = text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  const labels = lines.length === 1 ? lines[0].split(/[,，、;；]/).map((label) => label.trim()).filter(Boolean) : lines;
  return [...new Set(labels)];
}
