// The server's API: the key, errors in words, server-sent events.

import { $, text } from "./dom.js";
import { why } from "./errors.js";
import { has, t, left } from "./words.js";

const STORED = "coldstream-key";
const lockListeners = new Set();
let key = "";
let asking = null;
let needed = false;

try {
  key = sessionStorage.getItem(STORED) ?? "";
  needed = key !== "";
} catch {
  // storage is switched off: the key lives as long as the page
}

export const keyNeeded = () => needed;
export const onKeyNeeded = (listener) => lockListeners.add(listener);

// What went wrong, as the server says it; `field` is the part of the request to look at.
export class ApiError extends Error {
  constructor({ status, message, type = "", field = null, allowed = [], retryAfter = null }) {
    super(message);
    this.status = status;
    this.type = type;
    this.field = field;
    this.allowed = allowed;
    this.retryAfter = retryAfter;
  }

  get title() {
    if (this.status === 0) return t("error.network");
    const name = `error.${this.status}`;
    return t(has(name) ? name : this.status < 500 ? "error.400" : "error.500");
  }

  // The message in the reader's language; "" where that is not known, or is what the server said anyway.
  get why() {
    return why(this);
  }

  get hint() {
    const parts = [];
    if (this.allowed.length && !this.allowed.every((value) => this.message.includes(value))) {
      parts.push(t("error.allowed", { values: this.allowed.join(", ") }));
    }
    if (this.retryAfter !== null) parts.push(t("error.retry", { seconds: left(this.retryAfter) }));
    return parts.join(" ");
  }

  static fromBody(error, status, retryAfter = null) {
    const field = error.field ?? error.param ?? null;
    const type = error.code ?? error.type ?? "";
    return new ApiError({ status, message: error.message, type, field, allowed: error.allowed ?? [], retryAfter });
  }

  static async fromResponse(response) {
    const wait = Number.parseFloat(response.headers.get("retry-after"));
    const retryAfter = Number.isFinite(wait) ? wait : null;
    const body = await response.text();
    try {
      return ApiError.fromBody(JSON.parse(body).error, response.status, retryAfter);
    } catch {
      return new ApiError({ status: response.status, message: body.slice(0, 300), retryAfter });
    }
  }
}

// A response that is good; a missing key is asked for, once for all who need it, and the request sent again.
export async function call(path, { body, accept = "application/json", signal } = {}) {
  for (;;) {
    const used = key;
    const response = await send(path, { body, accept, signal });
    if (response.ok) return response;
    const error = await ApiError.fromResponse(response);
    if (response.status !== 401) throw error;
    needed = true;
    if (used === key && !(await askForKey(used !== ""))) throw error;
  }
}

async function send(path, { body, accept, signal }) {
  const headers = { accept };
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ status: 0, message: "" });
  }
}

// Whether anything answers there within so many milliseconds.
export async function answersAt(path, patience) {
  try {
    await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(patience) });
    return true;
  } catch {
    return false;
  }
}

export const getJson = async (path, options) => (await call(path, options)).json();

// True when a key was given. While the dialog is open, all who ask wait for the same answer.
export function askForKey(refused = false) {
  asking ??= openDialog(refused).finally(() => (asking = null));
  return asking;
}

function openDialog(refused) {
  const dialog = $("key");
  const input = $("key-value");
  const error = $("key-error");
  input.value = "";
  error.hidden = !refused;
  text(error, refused ? t("key.refused") : "");
  input.setAttribute("aria-invalid", String(refused));
  dialog.returnValue = "";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "use" && input.value.trim() !== "";
        if (given) remember(input.value.trim());
        input.value = "";
        for (const listener of lockListeners) listener(given);
        resolve(given);
      },
      { once: true },
    );
  });
}

function remember(value) {
  key = value;
  needed = true;
  try {
    sessionStorage.setItem(STORED, value);
  } catch {
    // storage is switched off
  }
}

// The data of each server-sent event, until [DONE] or the end.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const frames = (rest + value).split("\n\n");
      rest = frames.pop();
      for (const frame of frames) {
        if (!frame.startsWith("data: ")) continue;
        if (frame === "data: [DONE]") return;
        yield JSON.parse(frame.slice(6));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
