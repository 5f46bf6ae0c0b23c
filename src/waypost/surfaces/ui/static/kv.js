// The page of keys and values: folders, and one value that can be changed. Every change is a compare-and-set.

import { Refusal, ask, askJson, attempt, decide, make, pause, text } from "/ui/base.js";

const WAIT = "50s";
const encode = (key) => key.split("/").map(encodeURIComponent).join("/");
const link = (key) => `#/kv/${encode(key)}`;

// -- values -----------------------------------------------------------------------------------------------------------

// Bytes as text, or null when they are none.
function decode(base64) {
  const bytes = Uint8Array.from(atob(base64 || ""), (one) => one.charCodeAt(0));
  try { return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes); } catch { return null; }
}

const sizeOf = (base64) => atob(base64 || "").length;

// -- parts of the page ------------------------------------------------------------------------------------------------

function crumbs(key) {
  const parts = key.split("/").filter((one, at, all) => one || at < all.length - 1);
  const links = [make("a", { href: link("") }, text("top"))];
  parts.forEach((part, at) => {
    const upTo = parts.slice(0, at + 1).join("/") + (at < parts.length - 1 || key.endsWith("/") ? "/" : "");
    links.push(make("span", { class: "faint" }, " / "), make("a", { href: link(upTo), class: "code" }, part || "∅"));
  });
  return make("nav", { class: "crumbs" }, ...links);
}

function newKeyForm(prefix) {
  const input = make("input", { id: "new-key", type: "text", autocomplete: "off", spellcheck: "false", placeholder: text("newKeyHint"), "aria-label": text("newKeyHint") });
  return make("form", {
    class: "bar", onsubmit: (event) => { event.preventDefault(); if (input.value) location.hash = link(prefix + input.value); },
  }, make("label", { class: "search" }, input), make("button", { type: "submit" }, text("newKey")));
}

const isSure = async (question) => (await decide(question, { action: text("remove"), isDangerous: true })) !== null;

function drawFolder(page, prefix, keys) {
  const names = keys.filter((key) => key !== prefix);
  const remove = async () => {
    if (!await isSure(text("removeFolderAsk"))) return;
    await attempt(async () => { await ask(`/v1/kv/${encode(prefix)}?recurse`, { method: "DELETE" }); location.hash = link(prefix.replace(/[^/]*\/$/, "")); });
  };
  const list = names.length ? make("ul", { class: "keys card" }, ...names.map((key) => make("li", {},
    make("a", { href: link(key), class: key.endsWith("/") ? "code folder" : "code" }, key.slice(prefix.length) || "∅"))))
    : make("p", { class: "empty" }, text("emptyFolder"));
  const input = document.activeElement?.id === "new-key" ? document.activeElement : null;
  const form = newKeyForm(prefix);
  page.replaceChildren(crumbs(prefix), form, list, ...(prefix && names.length ? [make("p", {}, make("button", { type: "button", class: "danger", onclick: remove }, text("remove")))] : []));
  if (input) { form.querySelector("input").value = input.value; form.querySelector("input").focus(); }
}

class Editor {
  // One key: what is stored, and what is being written. A change from elsewhere never takes away what was typed.
  constructor(page, key) {
    this.key = key;
    this.entry = undefined;
    this.note = make("p", { role: "status", class: "note" });
    this.facts = make("p", { class: "faint" });
    this.area = make("textarea", { id: "value", spellcheck: "false", rows: "16", "aria-label": text("value"), oninput: () => { this.isDirty = true; this.say(""); } });
    this.area.editor = this;
    this.mine = make("div", {});
    this.saveButton = make("button", { type: "submit", class: "main" }, text("save"));
    this.removeButton = make("button", { type: "button", class: "danger", onclick: () => this.remove() }, text("remove"));
    this.isDirty = false;
    const form = make("form", { class: "card", onsubmit: (event) => { event.preventDefault(); this.save(); } },
      this.facts, this.area, make("div", { class: "actions" }, this.saveButton, this.removeButton), this.note, this.mine);
    this.area.addEventListener("keydown", (event) => { if (event.key === "s" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); this.save(); } });
    page.replaceChildren(crumbs(key), form);
  }

  say(words) { this.note.textContent = words; }

  show(entry) {
    const before = this.entry;
    if (before !== undefined && before?.ModifyIndex === entry?.ModifyIndex) return;
    const value = entry ? decode(entry.Value) : "";
    const isForeign = before !== undefined && this.isDirty && this.area.value !== value;
    if (isForeign) {
      this.say(text("changed"));
      this.mine.replaceChildren(make("p", {}, text("yours")), make("pre", { class: "code" }, this.area.value));
    }
    this.entry = entry;
    this.area.value = value ?? entry.Value;
    this.area.readOnly = value === null;
    this.saveButton.disabled = value === null;
    this.removeButton.hidden = !entry;
    this.isDirty = false;
    this.facts.textContent = entry
      ? [`${sizeOf(entry.Value)} ${text("bytes")}`, `${text("created")} ${entry.CreateIndex}`, `${text("modified")} ${entry.ModifyIndex}`,
        entry.Flags ? `${text("flags")} ${entry.Flags}` : null, entry.Session ? `${text("lockedBy")} ${entry.Session}` : null].filter(Boolean).join(" · ")
      : text("gone");
    if (value === null) this.say(text("binary"));
  }

  async attempt(action) { try { await action(); } catch (error) { this.say(error.message); } }

  async save() {
    if (this.area.readOnly) return;
    const written = this.area.value;
    await this.attempt(async () => {
      const flags = this.entry?.Flags ? `&flags=${this.entry.Flags}` : "";
      const done = await askJson(`/v1/kv/${encode(this.key)}?cas=${this.entry?.ModifyIndex || 0}${flags}`, { method: "PUT", body: written });
      if (done) { this.isDirty = false; this.mine.replaceChildren(); this.say(text("saved")); } else this.say(text("changed"));
    });
  }

  async remove() {
    if (!await isSure(text("removeAsk"))) return;
    await this.attempt(async () => {
      const done = await askJson(`/v1/kv/${encode(this.key)}?cas=${this.entry.ModifyIndex}`, { method: "DELETE" });
      if (done) location.hash = link(this.key.replace(/[^/]*$/, "")); else this.say(text("changed"));
    });
  }
}

// -- following --------------------------------------------------------------------------------------------------------

// Call `show` with what is at `path` now and whenever it changes. A missing thing is `absent`.
async function followPath(path, { signal, absent, show, failed }) {
  let index = 0;
  while (!signal.aborted) {
    try {
      const response = await fetchOrAbsent(`${path}${path.includes("?") ? "&" : "?"}stale&index=${index}&wait=${WAIT}`, signal);
      const now = Number(response.index);
      index = now < index ? 0 : now;
      show(response.body ?? absent);
      if (!index) await pause(1000, signal);
    } catch (error) {
      if (signal.aborted) return;
      failed(error);
      index = 0;
      await pause(2000, signal);
    }
  }
}

async function fetchOrAbsent(path, signal) {
  try {
    const response = await ask(path, { signal });
    return { body: await response.json(), index: response.headers.get("X-Consul-Index") };
  } catch (error) {
    if (!(error instanceof Refusal) || error.status !== 404) throw error;
    return { body: null, index: error.index };
  }
}

// Whether something was typed that is not stored yet.
export const isWriting = () => document.getElementById("value")?.editor.isDirty ?? false;

export async function runKV(page, key, { signal, denied }) {
  const failed = (error) => {
    if (error.isDenied) denied(page, error);
    else page.replaceChildren(crumbs(key), make("p", { class: "empty" }, error.message));
  };
  if (!key || key.endsWith("/")) {
    await followPath(`/v1/kv/${encode(key)}?keys&separator=/`, { signal, absent: [], failed, show: (keys) => drawFolder(page, key, keys) });
  } else {
    let editor = null;
    await followPath(`/v1/kv/${encode(key)}`, {
      signal, absent: [], failed: (error) => {
        // What was typed outlives a lost connection.
        if (editor && !error.isDenied) editor.say(error.message); else { editor = null; failed(error); }
      },
      show: (found) => { editor ??= new Editor(page, key); editor.show(found[0] || null); },
    });
  }
}
