// The interface: tabs, language, theme, who is signed in, and the stream that all pages are drawn from.

import { askJson, byId, choice, follow, make, pause, text, token } from "/ui/base.js";
import { drawNodes, drawServices, keepingFocus } from "/ui/catalog.js";
import { runCluster } from "/ui/cluster.js";
import { isWriting, runKV } from "/ui/kv.js";

const TABS = ["services", "nodes", "kv", "cluster"];
const RETRY_MS = [500, 5000];

let picture = null;
let state = "connecting";
let refusal = null;
let place = { tab: "services", rest: "" };
let visit = new AbortController();
let stream = new AbortController();

// -- what stands above every page -------------------------------------------------------------------------------------

function drawFrame() {
  document.documentElement.lang = choice.language === "zh" ? "zh-CN" : "en";
  document.documentElement.dataset.theme = choice.theme;
  byId("language").textContent = text("other");
  byId("theme").textContent = text(choice.theme === "dark" ? "light" : "dark");
  byId("sign").textContent = text(token.get() ? "signOut" : "signIn");
  byId("tabs").replaceChildren(...TABS.map((name) => make("a", { href: `#/${name}`, "aria-current": name === place.tab ? "page" : null }, text(name))));
  const shown = state === "live" && picture && !picture.leader.is_known ? "warn" : state;
  byId("live").dataset.state = { live: "on", lost: "off", locked: "off" }[shown] || "";
  byId("live").textContent = text(state);
  byId("where").textContent = picture ? `${picture.node} · ${picture.datacenter} · v${picture.version}` : "";
  byId("banner").hidden = !picture || picture.leader.is_known;
  byId("banner").textContent = text("noLeader");
}

function denied(page, error) {
  page.replaceChildren(make("div", { class: "empty" }, make("p", {}, text("needsToken")), make("p", { class: "code faint" }, error.message),
    make("button", { type: "button", class: "main", onclick: signIn }, text("signIn"))));
}

// -- pages ------------------------------------------------------------------------------------------------------------

function drawPage() {
  const draw = { services: drawServices, nodes: drawNodes }[place.tab];
  if (!draw) return;
  if (picture) keepingFocus(() => draw(byId("page"), picture, drawPage));
  else if (refusal) denied(byId("page"), refusal);
  else byId("page").replaceChildren();
}

function enter() {
  const [, tab = "", ...rest] = location.hash.split("/");
  visit.abort();
  visit = new AbortController();
  place = { tab: TABS.includes(tab) ? tab : "services", rest: rest.map(decodeURIComponent).join("/") };
  drawFrame();
  byId("page").replaceChildren();
  drawPage();
  const { signal } = visit;
  if (place.tab === "kv") runKV(byId("page"), place.rest, { signal, denied });
  if (place.tab === "cluster") runCluster(byId("page"), { picture: () => picture, signal });
}

function drawAll() { drawFrame(); drawPage(); }

// -- the stream -------------------------------------------------------------------------------------------------------

async function followPicture(signal) {
  let wait = RETRY_MS[0];
  while (!signal.aborted) {
    try {
      await follow("/ui/api/events", {
        signal,
        opened: () => { wait = RETRY_MS[0]; refusal = null; },
        event: (sent) => { picture = sent; state = "live"; drawAll(); },
      });
      state = "lost";
    } catch (error) {
      if (signal.aborted) return;
      state = error.isDenied ? "locked" : "lost";
      if (error.isDenied) { picture = null; refusal = error; }
    }
    drawAll();
    await pause(wait, signal);
    wait = Math.min(2 * wait, RETRY_MS[1]);
  }
}

function start() {
  stream.abort();
  stream = new AbortController();
  followPicture(stream.signal);
  enter();
}

// -- signing in -------------------------------------------------------------------------------------------------------

async function whoAmI() {
  const review = await askJson("/apis/authentication.k8s.io/v1/selfsubjectreviews", {
    method: "POST", body: JSON.stringify({ kind: "SelfSubjectReview", apiVersion: "authentication.k8s.io/v1" }),
  });
  return review.status.userInfo.username;
}

async function nameSigned() {
  byId("sign").title = "";
  if (!token.get()) return;
  try { byId("sign").title = `${text("signedInAs")} ${await whoAmI()}`; } catch { /* the pages say what is refused */ }
}

function signIn() {
  const dialog = byId("dialog");
  const input = make("input", { id: "token", type: "password", autocomplete: "off", required: true, "aria-label": text("token") });
  const note = make("p", { class: "note", role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    token.set(input.value.trim());
    try {
      await whoAmI();
    } catch (error) {
      token.set("");
      note.textContent = error.status === 401 ? text("refused") : error.message;
      return;
    }
    dialog.close();
    start();
    nameSigned();
  };
  dialog.replaceChildren(make("form", { onsubmit: submit },
    make("h2", {}, text("signIn")), make("p", { class: "faint" }, text("signInHint")), input, note,
    make("div", { class: "actions" }, make("button", { type: "submit", class: "main" }, text("signIn")),
      make("button", { type: "button", onclick: () => dialog.close() }, text("cancel")))));
  dialog.showModal();
}

byId("sign").addEventListener("click", () => {
  if (!token.get()) { signIn(); return; }
  token.set("");
  picture = null;
  start();
  nameSigned();
});
byId("language").addEventListener("click", () => { choice.set("language", choice.language === "zh" ? "en" : "zh"); if (isWriting()) drawFrame(); else enter(); });
byId("theme").addEventListener("click", () => { choice.set("theme", choice.theme === "dark" ? "light" : "dark"); drawFrame(); });
document.addEventListener("keydown", (event) => {
  const isTyping = ["INPUT", "TEXTAREA"].includes(document.activeElement?.tagName);
  const filter = byId("filter");
  if (event.key === "/" && !isTyping && filter) { event.preventDefault(); filter.focus(); }
  if (event.key === "Escape" && filter && document.activeElement === filter) {
    filter.value = "";
    filter.dispatchEvent(new Event("input"));
    byId("filter").blur();
  }
});
addEventListener("hashchange", enter);
addEventListener("beforeunload", (event) => { if (isWriting()) event.preventDefault(); });
start();
nameSigned();
