// The page: connects the form fields, the address, and the tasks.

import { describeServer } from "./api.js";
import { Classification } from "./classification.js";
import { byId } from "./element.js";
import { listenForImages } from "./images.js";
import { problem } from "./scores.js";
import { Search } from "./search.js";
import { hasKey, setKey } from "./server.js";
import { readState, writeState } from "./state.js";
import { setLanguage, speak } from "./words.js";

const TASKS = ["classify", "search"];

const tasks = { classify: new Classification(askForKey), search: new Search(askForKey) };
let task = "classify";
let server = null;

function start() {
  setLanguage(readState().lang);
  for (const button of document.querySelectorAll("[data-language]")) {
    button.addEventListener("click", () => {
      writeState({ lang: setLanguage(button.dataset.language) });
      for (const each of Object.values(tasks)) each.relabel();
    });
  }
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the part of the address after "#" holds the labels
    byId("work").focus();
  });
  byId("key").addEventListener("submit", useKey);
  byId("key-forget").addEventListener("click", () => askForKey(null));
  for (const name of TASKS) byId(`tab-${name}`).addEventListener("click", () => showTask(name));
  byId("tabs").addEventListener("keydown", moveTab);
  addEventListener("hashchange", () => {
    setLanguage(readState().lang);
    if (server) showServer();
  });
  listenForImages(() => (byId("forms").hidden ? null : tasks[task].images));
  connect();
}

async function connect() {
  byId("trouble").hidden = true;
  try {
    server = await describeServer();
    showServer();
  } catch (error) {
    if (error.status === 401 || error.status === 403) askForKey(hasKey() ? error : null);
    else {
      const again = speak(document.createElement("button"), "tryAgain");
      again.addEventListener("click", connect);
      byId("trouble").replaceChildren(problem(error), again);
      byId("trouble").hidden = false;
    }
  }
}

function showServer() {
  byId("key").hidden = true;
  byId("key-forget").hidden = !hasKey();
  byId("forms").hidden = false;
  byId("server").textContent = server.version;
  for (const each of Object.values(tasks)) each.configure(server);
  byId("tabs").hidden = !server.index;
  showTask(server.index ? readState().task : "classify");
}

function showTask(name) {
  task = TASKS.includes(name) ? name : "classify";
  for (const each of TASKS) {
    const tab = byId(`tab-${each}`);
    tab.setAttribute("aria-selected", String(each === task));
    tab.tabIndex = each === task ? 0 : -1;
    byId(each).hidden = each !== task;
  }
  writeState({ task });
  tasks[task].showMark();
}

// Arrow keys, Home and End move between tabs, as the pattern "tabs" of the ARIA guide says.
function moveTab(event) {
  const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -TASKS.indexOf(task), End: TASKS.length - 1 - TASKS.indexOf(task) };
  if (!(event.key in moves)) return;
  event.preventDefault();
  showTask(TASKS[(TASKS.indexOf(task) + moves[event.key] + TASKS.length) % TASKS.length]);
  byId(`tab-${task}`).focus();
}

// Show the field for the key; error: why the one that was sent is wrong, or null if none was.
function askForKey(error) {
  setKey("");
  byId("key-forget").hidden = true;
  byId("key").hidden = false;
  byId("key-reason").hidden = error === null;
  byId("key-reason").textContent = error === null ? "" : error.message;
  byId("key-text").focus();
}

function useKey(event) {
  event.preventDefault();
  const text = byId("key-text").value.trim();
  byId("key-text").value = "";
  if (text) setKey(text);
  connect();
}

start();
