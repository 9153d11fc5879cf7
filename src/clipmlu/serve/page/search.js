// The task "search": text, image or both are compared with the server's index.

import { search } from "./api.js";
import { byId, fillSelect } from "./element.js";
import { forget, showHits } from "./hits.js";
import { ImageList } from "./images.js";
import { problem } from "./scores.js";
import { readState, writeState } from "./state.js";
import { demand, satisfied, Task } from "./tasks.js";
import { speak } from "./words.js";

const COUNTS = ["4", "12", "24", "48", "100"];

export class Search {
  constructor(askForKey) {
    this.askForKey = askForKey;
    this.emulated = false;
    this.query = byId("query");
    this.queryProblem = byId("query-problem");
    this.task = new Task("search", (signal) => this.run(signal));
    this.images = new ImageList(byId("search-images"), { multiple: false, announce: (...words) => this.task.say(...words) });
    for (const name of ["query", "hits", "path"]) byId(name).addEventListener("input", () => writeState({ [name]: byId(name).value }));
  }

  configure(server) {
    const state = readState();
    this.index = server.index;
    if (!this.index) return;
    const [embedding] = this.index.models ?? []; // the bundle that embeds queries
    this.emulated = this.index.emulated || server.bundles.some(({ name, emulated }) => emulated && name === embedding);
    fillSelect(byId("hits"), COUNTS.map((count) => [count, count]), state.hits);
    this.query.value = state.query;
    byId("path").value = state.path;
    speak(byId("indexed"), "indexed", this.index.rows);
  }

  relabel() {}

  showMark() {
    byId("emulated").hidden = !this.emulated;
  }

  async run(signal) {
    const text = this.query.value.trim();
    const image = this.images.items[0]?.file ?? null;
    if (!text && !image) return demand(this.query, this.queryProblem, "needQuery");
    satisfied(this.query, this.queryProblem);
    const { task } = this;
    const begin = performance.now();
    task.say("searching");
    task.showResults();
    try {
      const wanted = { text, image, count: Number(byId("hits").value), path: byId("path").value.trim() };
      const found = await search({ ...wanted, signal, onWait: (seconds) => task.say("busy", seconds) });
      const seconds = ((performance.now() - begin) / 1000).toFixed(2);
      task.say(...(found.hits.length ? ["foundCount", found.hits.length, seconds] : ["foundNone"]));
      await showHits(task.results, { ...found, signal });
    } catch (error) {
      this.failed(error);
    }
  }

  failed(error) {
    if (error.name === "AbortError") return this.task.say("stopped");
    forget();
    this.task.tell("");
    this.task.results.replaceChildren(problem(error));
    this.task.results.firstChild.setAttribute("role", "alert");
    if (error.status === 401) this.askForKey(error);
  }
}
