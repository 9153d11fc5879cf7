// The task "classify": its form, one request for each image, and a card for each answer.

import { classify } from "./api.js";
import { byId, element, fillSelect } from "./element.js";
import { ImageList } from "./images.js";
import { ScoreCard, summary } from "./scores.js";
import { readState, splitLabels, writeState } from "./state.js";
import { demand, satisfied, Task } from "./tasks.js";
import { say, speak, write } from "./words.js";

const AT_ONCE = 4; // requests in flight; the server forms batches of them
const COUNTS = ["1", "3", "5", "10", "20"];
const ALL = "all";
const OWN = "{}"; // the choice of a template that the user types; no set has this name

export class Classification {
  constructor(askForKey) {
    this.askForKey = askForKey;
    this.labels = byId("labels");
    this.labelsProblem = byId("labels-problem");
    this.task = new Task("classify", (signal, cards) => this.run(signal, cards));
    this.images = new ImageList(byId("classify-images"), { multiple: true, announce: (...words) => this.task.say(...words) });
    this.labels.addEventListener("input", () => this.labelsChanged());
    this.labels.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.task.start();
    });
    byId("bundle").addEventListener("change", () => this.bundleChanged());
    for (const name of ["templates", "template", "top"]) byId(name).addEventListener("input", () => this.optionChanged(name));
  }

  configure(server) {
    const state = readState();
    this.server = server;
    fillSelect(byId("bundle"), server.bundles.map(({ name }) => [name, name]), state.bundle);
    byId("bundle-choice").hidden = server.bundles.length < 2;
    this.labels.value = state.labels;
    this.relabel();
    byId("top").value = state.top;
    byId("templates").value = state.templates;
    byId("template").value = state.template;
    this.optionChanged("templates");
    this.bundleChanged();
  }

  // Show the words that are not data-word in the present language.
  relabel() {
    if (!this.server) return;
    const names = this.server.templates.map((name) => [name, name]);
    fillSelect(byId("templates"), [["", say("templatesServer")], ...names, [OWN, say("templatesOwn")]]);
    fillSelect(byId("top"), [...COUNTS.map((count) => [count, say("topBest", Number(count))]), [ALL, say("topAll")]]);
    this.labelsChanged();
  }

  get bundle() {
    return this.server.bundles.find(({ name }) => name === byId("bundle").value) ?? this.server.bundles[0];
  }

  optionChanged(name) {
    writeState({ [name]: byId(name).value });
    byId("template-field").hidden = byId("templates").value !== OWN;
  }

  bundleChanged() {
    writeState({ bundle: this.bundle === this.server.bundles[0] ? "" : this.bundle.name });
    const { name, model, target, precision } = this.bundle;
    write(byId("facts"), `${name}: ${model}, ${target}, ${precision}`);
    this.labelsChanged();
    this.showMark();
  }

  labelsChanged() {
    const count = splitLabels(this.labels.value).length;
    writeState({ labels: this.labels.value });
    if (count === 0 && this.bundle.labelCount) speak(byId("labels-count"), "labelsDefault", this.bundle.labelCount);
    else if (count) speak(byId("labels-count"), "labelsCount", count);
    else write(byId("labels-count"), "");
  }

  showMark() {
    byId("emulated").hidden = !this.bundle.emulated;
  }

  async run(signal, again) {
    const labels = splitLabels(this.labels.value);
    if (this.images.items.length === 0) return demand(this.images.input, this.images.notice, "needImages");
    satisfied(this.images.input, this.images.notice);
    if (labels.length === 0 && !this.bundle.labelCount) return demand(this.labels, this.labelsProblem, "needLabels");
    satisfied(this.labels, this.labelsProblem);
    const { templates } = this;
    if (templates === null) return demand(byId("template"), byId("template-problem"), "needTemplate");
    const cards = again ?? this.newCards();
    await this.classifyAll(cards, { labels, bundle: this.bundle.name, templates, count: this.count(labels), signal });
  }

  // How many labels of an image are shown.
  count(labels) {
    const all = labels.length || this.bundle.labelCount;
    return byId("top").value === ALL ? all : Math.min(all, Number(byId("top").value));
  }

  // "" for the templates of the server, the name of a set, or the template in the field; null if that is wrong.
  get templates() {
    const chosen = byId("templates").value;
    if (chosen !== OWN) return chosen;
    const text = byId("template").value.trim();
    return text.includes("{}") ? text : null;
  }

  newCards() {
    const cards = this.images.items.map((item) => new ScoreCard(item));
    this.task.results.replaceChildren(...cards.map((card) => card.root));
    return cards;
  }

  async classifyAll(cards, options) {
    const begin = performance.now();
    const left = [...cards];
    const pace = Math.ceil(cards.length / 4); // a few messages for people who hear them, however many images there are
    let finished = 0;
    const next = async () => {
      for (let card = left.shift(); card; card = left.shift()) {
        await this.classifyOne(card, options);
        finished += 1;
        if (finished % pace === 0) this.task.say("classifying", finished, cards.length);
      }
    };
    this.task.say("classifying", 0, cards.length);
    this.task.showResults();
    await Promise.all(Array.from({ length: AT_ONCE }, next));
    this.finish(cards, ((performance.now() - begin) / 1000).toFixed(2), options.signal.aborted);
  }

  async classifyOne(card, { signal, ...options }) {
    if (signal.aborted) return card.stopped();
    card.waiting();
    try {
      const { result, times } = await classify(card.item.file, { ...options, signal, onWait: (seconds) => card.busy(seconds) });
      card.done(result, times);
    } catch (error) {
      if (error.name === "AbortError") return card.stopped();
      card.failed(error);
      if (error.status === 401) this.askForKey(error);
    }
  }

  finish(cards, seconds, stopped) {
    this.task.tell(stopped ? say("stopped") : summary(cards, seconds));
    const undone = cards.filter((card) => card.state !== "done");
    if (undone.length === 0) return;
    const button = speak(element("button", { type: "button" }), "again", undone.length);
    button.addEventListener("click", () => {
      button.remove();
      this.task.submit.focus();
      this.task.start(undone);
    });
    this.task.results.prepend(button);
  }
}
