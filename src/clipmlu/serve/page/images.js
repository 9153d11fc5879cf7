// The images that the user gives: dropped, pasted or chosen from files, shown with names and buttons that remove them.

import { element } from "./element.js";
import { say, speak } from "./words.js";

let pastedCount = 0;
let zoneCount = 0;

export class ImageList {
  // root: an element that becomes the drop zone. announce: a function that is given a text for people to hear.
  constructor(root, { multiple, announce }) {
    this.multiple = multiple;
    this.announce = announce;
    this.items = [];
    zoneCount += 1;
    const id = `files-${zoneCount}`;
    this.input = element("input", { type: "file", id, accept: "image/*", multiple, class: "unseen" });
    const words = speak(element("span"), multiple ? "drop" : "dropOne");
    this.zone = element("label", { for: id, class: "zone" }, element("span", { class: "plus", "aria-hidden": "true" }, "+"), words);
    this.list = element("ul", { class: "chosen" });
    this.clear = speak(element("button", { type: "button", class: "plain", hidden: true }), "removeAll");
    this.notice = element("p", { class: "problem", role: "alert", hidden: true });
    root.replaceChildren(this.input, this.zone, this.notice, this.list, this.clear);
    this.input.addEventListener("change", () => {
      this.add(this.input.files);
      this.input.value = "";
    });
    this.clear.addEventListener("click", () => this.removeAll());
  }

  add(files, pasted = false) {
    const given = [...files];
    const images = given.filter((file) => file.type.startsWith("image/") || file.type === "");
    const others = given.filter((file) => !images.includes(file));
    this.notice.hidden = others.length === 0;
    if (others.length > 0) speak(this.notice, "notImages", others.map((file) => file.name).join(", "));
    if (images.length === 0) return;
    if (!this.multiple) this.forget(this.items);
    const taken = this.multiple ? images : images.slice(-1);
    for (const file of taken) this.items.push(this.show(file, pasted));
    this.update();
    this.announce("added", taken.length, this.items.length);
  }

  show(file, pasted) {
    const name = pasted ? say("pasted", (pastedCount += 1)) : file.name;
    const item = { file, name, url: URL.createObjectURL(file) };
    const button = element("button", { type: "button", class: "remove", "data-word-label": "remove" }, "×");
    button.dataset.values = JSON.stringify([name]);
    button.setAttribute("aria-label", say("remove", name));
    button.addEventListener("click", () => this.remove(item));
    item.row = element("li", {}, picture(item.url, "small"), element("span", { class: "name" }, name), button);
    this.list.append(item.row);
    return item;
  }

  remove(item) {
    const place = this.items.indexOf(item);
    this.forget([item]);
    this.update();
    const next = this.items[Math.min(place, this.items.length - 1)];
    (next ? next.row.querySelector("button") : this.input).focus();
    this.announce("removed", item.name, this.items.length);
  }

  removeAll() {
    this.forget(this.items);
    this.update();
    this.input.focus();
    this.announce("added", 0, 0);
  }

  forget(items) {
    for (const item of items) {
      URL.revokeObjectURL(item.url);
      item.row.remove();
    }
    this.items = this.items.filter((item) => !items.includes(item));
  }

  update() {
    this.clear.hidden = this.items.length < 2;
  }
}

// A small picture beside its name, so it needs no text of its own. What the browser cannot show has a placeholder.
export function picture(url, size) {
  const image = element("img", { src: url, alt: "", decoding: "async", class: size });
  image.addEventListener("error", () => image.replaceWith(element("span", { class: `${size} blank`, "aria-hidden": "true" }, "?")));
  return image;
}

// Images that are dropped anywhere on the page, or pasted, go to the list that is in use.
export function listenForImages(currentList) {
  const withFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let inside = 0;
  const mark = (on) => document.body.classList.toggle("dropping", on);
  document.addEventListener("dragenter", (event) => {
    if (withFiles(event)) mark((inside += 1) > 0);
  });
  document.addEventListener("dragleave", (event) => {
    if (withFiles(event)) mark((inside = Math.max(0, inside - 1)) > 0);
  });
  document.addEventListener("dragover", (event) => {
    if (withFiles(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!withFiles(event)) return;
    event.preventDefault();
    mark((inside = 0) > 0);
    currentList()?.add(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (files.length === 0 || !currentList()) return;
    event.preventDefault();
    currentList().add(files, true);
  });
}
