// One run of a task at a time: its buttons, its stop, and where its messages appear.

import { byId } from "./element.js";
import { speak, write } from "./words.js";

export class Task {
  // name: "classify" or "search"; run(signal): does the work after the form was sent
  constructor(name, run) {
    this.submit = byId(`${name}-form`).querySelector("[type=submit]");
    this.stopButton = byId(`${name}-stop`);
    this.status = byId(`${name}-status`);
    this.results = byId(`${name}-results`);
    this.run = run;
    byId(`${name}-form`).addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    this.stopButton.addEventListener("click", () => this.stop());
  }

  async start(...given) {
    if (this.controller) return;
    this.controller = new AbortController();
    this.mark(true);
    try {
      await this.run(this.controller.signal, ...given);
    } finally {
      this.controller = null;
      this.mark(false);
    }
  }

  stop() {
    this.controller?.abort();
  }

  // On a narrow screen the results are below the form.
  showResults() {
    const section = this.results.parentElement;
    if (section.getBoundingClientRect().top > 0.7 * innerHeight) section.scrollIntoView({ block: "start" });
  }

  // The button stays where the focus is, so it is not disabled.
  mark(running) {
    if (!running && document.activeElement === this.stopButton) this.submit.focus();
    this.submit.setAttribute("aria-disabled", String(running));
    this.stopButton.hidden = !running;
  }

  say(word, ...values) {
    speak(this.status, word, ...values);
  }

  tell(text) {
    write(this.status, text);
  }
}

// Ask for what is missing: a message beside the field, which then has the focus.
export function demand(field, message, word) {
  field.setAttribute("aria-invalid", "true");
  speak(message, word).hidden = false;
  field.focus();
  field.addEventListener("input", () => satisfied(field, message), { once: true });
}

export function satisfied(field, message) {
  field.removeAttribute("aria-invalid");
  message.hidden = true;
}
