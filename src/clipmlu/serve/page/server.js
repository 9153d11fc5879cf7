// Requests to the server: the API key, errors as its messages, and another try after the time that a busy server names.

import { say } from "./words.js";

const KEY_NAME = "clipmlu-api-key";
const MOST_TRIES = 8;
const LONGEST_WAIT_S = 30;

let key = storedKey();

function storedKey() {
  try {
    return sessionStorage.getItem(KEY_NAME) ?? "";
  } catch {
    return "";
  }
}

// Keep the key while this tab is open; "" forgets it.
export function setKey(text) {
  key = text;
  try {
    if (key) sessionStorage.setItem(KEY_NAME, key);
    else sessionStorage.removeItem(KEY_NAME);
  } catch {
    // Without storage the key lasts until the page is left.
  }
}

export function hasKey() {
  return key !== "";
}

export class ServerError extends Error {
  constructor(message, status = 0, requestId = "") {
    super(message);
    this.status = status;
    this.requestId = requestId;
  }
}

// Send one request; return {response, ms}, where ms is the time of the last try until its headers came.
// onWait(seconds) is called before a busy server is asked again.
export async function send(path, { body, json, signal, onWait = () => {} } = {}) {
  const headers = { Accept: "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (json !== undefined) headers["Content-Type"] = "application/json";
  const options = { method: body || json ? "POST" : "GET", headers, body: json ? JSON.stringify(json) : body, signal, cache: "no-store" };
  for (let tried = 1; ; tried += 1) {
    const begin = performance.now();
    const response = await fetch(path, options).catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new ServerError(say("gone"));
    });
    const ms = performance.now() - begin;
    if (response.ok) return { response, ms };
    if (response.status !== 429) throw await errorFrom(response);
    if (tried === MOST_TRIES) throw new ServerError(say("tooBusy"), 429);
    const seconds = Math.min(Math.max(1, Number(response.headers.get("Retry-After")) || 1), LONGEST_WAIT_S);
    onWait(seconds);
    await pause(seconds, signal);
  }
}

export async function ask(path, options) {
  const { response, ms } = await send(path, options);
  try {
    return { answer: await response.json(), ms, response };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(error instanceof SyntaxError ? say("noSense", response.status) : say("gone"), response.status);
  }
}

async function errorFrom(response) {
  const { error } = await response.json().catch(() => ({}));
  const message = typeof error?.message === "string" ? error.message : say("noSense", response.status);
  return new ServerError(message, response.status, typeof error?.request_id === "string" ? error.request_id : "");
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}
