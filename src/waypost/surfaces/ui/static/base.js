// What every part of the interface uses: words, elements, requests. Foreign text only ever becomes a text node.

import { TEXTS } from "/ui/texts.js";

const remembered = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
const remember = (key, value) => { try { localStorage.setItem(key, value); } catch { /* private window */ } };

export const choice = {
  language: remembered("language") || (navigator.language.startsWith("zh") ? "zh" : "en"),
  theme: remembered("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"),
  set(key, value) { this[key] = value; remember(key, value); },
};
export const text = (key) => TEXTS[choice.language][key] ?? key;
export const byId = (id) => document.getElementById(id);

export function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const card = (value, label, kind) => make("div", { class: "card" }, make("b", { class: kind || "" }, String(value)), label);

export const table = (heads, rows) => make("div", { class: "card scroll" }, make("table", {},
  make("thead", {}, make("tr", {}, ...heads.map((label) => make("th", { scope: "col" }, label)))),
  make("tbody", {}, ...rows)));

export const endpoint = (address, port) => (address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`);

// -- requests ---------------------------------------------------------------------------------------------------------

export const token = {
  get: () => sessionStorage.getItem("token") || "",
  set: (value) => (value ? sessionStorage.setItem("token", value) : sessionStorage.removeItem("token")),
};

export class Refusal extends Error {
  constructor(status, message) { super(message); this.status = status; }
  get isDenied() { return this.status === 401 || this.status === 403; }
}

// The server's own words: a kube Status carries them in "message", everything else is plain text.
function wordsOf(body, status) {
  try { return JSON.parse(body).message || body; } catch { return body.trim() || `HTTP ${status}`; }
}

export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  if (body !== undefined && method === "POST") headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, text("lost"));
  }
  if (!response.ok) {
    const refusal = new Refusal(response.status, wordsOf(await response.text(), response.status));
    refusal.index = response.headers.get("X-Consul-Index");
    throw refusal;
  }
  return response;
}

export const askJson = async (path, options) => (await ask(path, options)).json();

export const pause = (milliseconds, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, milliseconds);
  signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});

// Server-sent events with a token, which EventSource cannot send. Source: WHATWG HTML, server-sent events.
export async function follow(path, { signal, opened, event }) {
  const response = await ask(path, { signal });
  opened();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (data.length) event(JSON.parse(data.join("\n")));
    }
  }
}

// -- questions and answers --------------------------------------------------------------------------------------------

let toastTimer = null;

export function toast(words) {
  byId("toast").textContent = words;
  byId("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { byId("toast").hidden = true; }, 8000);
}

// Ask for a decision, and for a reason if `reason` labels one. Resolves to the reason ("" without one), or null for no.
export function decide(question, { action, reason = null, isDangerous = false }) {
  const dialog = byId("dialog");
  return new Promise((resolve) => {
    let answer = null;
    const input = reason ? make("input", { type: "text", autocomplete: "off", "aria-label": reason, placeholder: reason }) : null;
    dialog.replaceChildren(make("form", {
      onsubmit: (event) => { event.preventDefault(); answer = input ? input.value.trim() : ""; dialog.close(); },
    }, make("h2", {}, question), input, make("div", { class: "actions" },
      make("button", { type: "submit", class: isDangerous ? "danger" : "main" }, action),
      make("button", { type: "button", onclick: () => dialog.close() }, text("cancel")))));
    dialog.addEventListener("close", () => resolve(answer), { once: true });
    dialog.showModal();
  });
}

// Do something that may be refused, and say why it was.
export async function attempt(action) {
  try { await action(); } catch (error) { toast(error.message); }
}
