// The results of a classification: for each image its labels with bars and numbers, or why there are none.

import { element } from "./element.js";
import { picture } from "./images.js";
import { say, speak } from "./words.js";

const UNIT = "\u00a0%"; // a line never ends between number and unit

// A probability in percent, with three significant digits where it is small.
export function percent(score) {
  const value = score * 100;
  if (value < 0.001) return `<0.001${UNIT}`;
  return `${value < 0.9995 ? value.toPrecision(2) : value.toFixed(value < 9.995 ? 2 : 1)}${UNIT}`;
}

export function milliseconds(value) {
  return value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

// The place of an image among the results, before its answer is there.
export class ScoreCard {
  constructor(item) {
    this.item = item;
    this.root = element("article", { class: "card" }, picture(item.url, "large"), element("h3", {}, item.name));
    this.waiting();
  }

  waiting() {
    this.state = "waiting";
    this.replace(speak(element("p", { class: "faint" }), "waiting"));
  }

  busy(seconds) {
    this.replace(speak(element("p", { class: "faint" }), "busy", seconds));
  }

  stopped() {
    this.state = "stopped";
    this.replace(speak(element("p", { class: "faint" }), "stopped"));
  }

  failed(error) {
    this.state = "failed";
    this.replace(problem(error));
  }

  // result: {scores: [{label, score}], rejected, emulated}; times: {server, round} in ms
  done(result, times) {
    this.state = "done";
    this.result = result;
    const parts = [];
    if (result.rejected) parts.push(speak(element("p"), "rejected"));
    parts.push(list(result.scores, this.item.name), timeLine(times, result.emulated));
    this.replace(...parts);
  }

  replace(...parts) {
    while (this.root.children.length > 2) this.root.lastElementChild.remove();
    this.root.append(...parts);
  }
}

function list(scores, name) {
  const rows = scores.map(({ label, score }) => {
    const fill = element("span");
    fill.style.setProperty("--share", String(Math.min(1, Math.max(0, score))));
    const bar = element("span", { class: "bar", "aria-hidden": "true" }, fill);
    return element("li", {}, element("span", { class: "label" }, label), " ", element("span", { class: "number" }, percent(score)), bar);
  });
  return element("ol", { class: "scores", role: "list", "aria-label": say("scoresOf", name) }, ...rows);
}

export function timeLine({ server, round }, emulated) {
  const words = server === null ? ["timeRound", milliseconds(round)] : ["time", milliseconds(server), milliseconds(round)];
  const line = element("p", { class: "faint time" }, speak(element("span"), ...words));
  if (emulated) line.append(" ", emulatedMark());
  return line;
}

export function emulatedMark() {
  return speak(element("strong", { class: "emulated" }), "emulated");
}

// The message of an error, with the id by which the server's log knows the request.
export function problem(error) {
  const line = element("p", { class: "problem" }, error.message);
  if (error.requestId) line.append(" ", speak(element("small"), "request", error.requestId));
  return line;
}

export function summary(cards, seconds) {
  const done = cards.filter((card) => card.state === "done");
  const failed = cards.filter((card) => card.state === "failed").length;
  const [best] = cards.length === 1 && done.length ? done[0].result.scores : [];
  const text = best
    ? say("classifiedOne", done[0].item.name, best.label, percent(best.score), seconds)
    : say("classified", done.length, seconds);
  return failed ? say("failedToo", text, failed) : text;
}
