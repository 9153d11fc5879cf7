// The server's routes, and what the page takes of their answers.

import { ask, ServerError } from "./server.js";
import { say } from "./words.js";

// What the server has: {version, bundles: [{name, model, target, precision, emulated, labelCount}], templates: [name],
// index: null or {rows, emulated}}
export async function describeServer() {
  const [{ answer }, settings] = await Promise.all([ask("v1/models"), ask("page/settings.json")]);
  const bundles = answer.models.map(({ labels, ...each }) => ({ ...each, labelCount: Array.isArray(labels) ? labels.length : labels ?? 0 }));
  return { ...settings.answer, bundles, index: answer.index ?? null };
}

// Classify one image; return {result: {scores: [{label, score}], rejected, emulated}, times: {server, round}}.
// labels: [] for those of the server; templates: "" for those of the server, the name of a set, or one template with {}.
export async function classify(file, { labels, bundle, templates, count, signal, onWait }) {
  const json = { model: bundle, images: [{ data: await base64(file), id: file.name || "image" }], top_k: count };
  if (labels.length) json.labels = labels;
  if (templates) json.templates = [templates];
  const { answer, ms } = await ask("v1/classify", { json, signal, onWait });
  const [result] = answer.results;
  if (result.error) throw new ServerError(result.error);
  const scores = result.predictions.map((each) => ({ label: each.class_name, score: each.score }));
  return { result: { scores, rejected: result.rejected === true, emulated: answer.emulated }, times: { server: answer.time_ms, round: ms } };
}

// Search the index; return {hits: [{row, path, score}], times, emulated, thumbnail}.
export async function search({ text, image, count, path, signal, onWait }) {
  const body = new FormData();
  if (text) body.append("text", text);
  if (image) body.append("image", image, image.name || "image");
  body.append("top_k", String(count));
  if (path) body.append("include", path);
  const { answer, ms } = await ask("v1/search", { body, signal, onWait });
  const hits = answer.hits.map((hit) => ({ row: hit.row, path: hit.id, score: hit.score }));
  return { hits, times: { server: answer.time_ms, round: ms }, emulated: answer.emulated, thumbnail: ({ row, path }) => `v1/thumbnail/${row}?id=${encodeURIComponent(path)}` };
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result.slice(reader.result.indexOf(",") + 1)));
    reader.addEventListener("error", () => reject(new ServerError(say("unreadable", file.name))));
    reader.readAsDataURL(file);
  });
}
