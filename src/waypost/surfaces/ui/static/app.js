"use strict";
// Draws the picture that /ui/api/events sends. Foreign text only ever becomes a text node.

const TEXTS = {
  en: {
    filter: "Filter services (press /)", nodes: "Nodes", services: "Services", instances: "Instances",
    passing: "passing", warning: "warning", critical: "critical", maintenance: "maintenance",
    live: "live", connecting: "connecting…", lost: "connection lost, trying again",
    instance: "Instance", node: "Node", address: "Address", checks: "Checks", status: "Status", tags: "Tags",
    nothing: "No service fits.", none: "No services yet. Start a container with -l SERVICE_NAME=web and a published port.",
    noChecks: "no checks", light: "Light", dark: "Dark", other: "中文", details: "Details",
    owner: { docker: "container", api: "API", config: "configuration file", self: "waypost itself", "": "catalog" },
  },
  zh: {
    filter: "筛选服务（按 /）", nodes: "节点", services: "服务", instances: "实例",
    passing: "正常", warning: "警告", critical: "故障", maintenance: "维护",
    live: "实时", connecting: "连接中…", lost: "连接中断，正在重试",
    instance: "实例", node: "节点", address: "地址", checks: "检查", status: "状态", tags: "标签",
    nothing: "没有符合条件的服务。", none: "还没有服务。启动一个带 -l SERVICE_NAME=web 并发布端口的容器即可。",
    noChecks: "无检查", light: "浅色", dark: "深色", other: "English", details: "详情",
    owner: { docker: "容器", api: "API", config: "配置文件", self: "waypost 自身", "": "目录" },
  },
};
const STATES = ["critical", "warning", "maintenance", "passing"];

const byId = (id) => document.getElementById(id);
const remembered = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
const remember = (key, value) => { try { localStorage.setItem(key, value); } catch { /* private window */ } };

let language = remembered("language") || (navigator.language.startsWith("zh") ? "zh" : "en");
let theme = remembered("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
let picture = null;
let state = "connecting";
let only = null;
const open = new Set(JSON.parse(sessionStorage.getItem("open") || "[]"));
let known = null;

const text = (key) => TEXTS[language][key];

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function drawCards() {
  const counts = { passing: 0, warning: 0, critical: 0, maintenance: 0 };
  let instances = 0;
  for (const service of picture.services) {
    instances += service.instances.length;
    for (const name of Object.keys(counts)) counts[name] += service.counts[name] || 0;
  }
  const card = (value, label, kind) => make("div", { class: "card" }, make("b", { class: kind || "" }, String(value)), label);
  byId("cards").replaceChildren(
    card(picture.services.length, text("services")), card(instances, text("instances")),
    card(counts.passing, text("passing"), "passing"),
    card(counts.warning, text("warning"), counts.warning ? "warning" : ""),
    card(counts.critical + counts.maintenance, text("critical"), counts.critical + counts.maintenance ? "critical" : ""),
    card(picture.nodes.length, text("nodes")),
  );
}

function drawChips() {
  byId("chips").replaceChildren(...STATES.map((name) => make("button", {
    class: "chip", type: "button", "aria-pressed": String(only === name),
    onclick: () => { only = only === name ? null : name; draw(); },
  }, make("span", { class: `dot ${name}` }, text(name)))));
}

function fits(service, wanted) {
  if (only && !service.counts[only]) return false;
  if (!wanted) return true;
  const words = [service.name, ...service.tags, ...service.instances.flatMap((one) => [one.id, one.node, one.address])];
  return words.some((word) => word.toLowerCase().includes(wanted));
}

function drawInstance(service, one) {
  const key = `${service.name}\n${one.node}\n${one.id}\n${one.status}`;
  const checks = one.checks.length
    ? make("ul", { class: "checks" }, ...one.checks.map((check) => make("li", {},
        make("span", { class: `dot ${check.status}` }, check.name),
        check.output ? make("span", { class: "output" }, check.output) : null)))
    : make("span", { class: "faint" }, text("noChecks"));
  const endpoint = one.address.includes(":") ? `[${one.address}]:${one.port}` : `${one.address}:${one.port}`;
  return make("tr", { class: known && !known.has(key) ? "flash" : null },
    make("td", {}, make("span", { class: `dot ${one.status}` }, text(one.status))),
    make("td", {}, make("span", { class: "code" }, one.id), make("br"), make("span", { class: "faint" }, text("owner")[one.owner] ?? one.owner)),
    make("td", {}, one.node), make("td", { class: "code" }, endpoint), make("td", {}, checks));
}

function drawService(service) {
  const health = STATES.filter((name) => service.counts[name]).map((name) =>
    make("span", { class: `dot ${name}`, title: text(name) }, String(service.counts[name])));
  const body = make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...["status", "instance", "node", "address", "checks"].map((key) => make("th", { scope: "col" }, text(key))))),
    make("tbody", {}, ...service.instances.map((one) => drawInstance(service, one)))));
  return make("details", {
    class: "service", open: open.has(service.name) ? "" : null, "data-service": service.name,
    ontoggle: (event) => {
      open[event.target.open ? "add" : "delete"](service.name);
      sessionStorage.setItem("open", JSON.stringify([...open]));
    },
  }, make("summary", {},
    make("span", { class: "name" }, service.name),
    make("span", { class: "tags" }, ...service.tags.map((tag) => make("span", { class: "tag" }, tag))),
    make("span", { class: "health" }, ...health)), body);
}

function drawNodes() {
  const rows = picture.nodes.map((one) => make("tr", {},
    make("td", {}, make("span", { class: `dot ${one.status}` }, one.name)),
    make("td", { class: "code" }, one.address), make("td", {}, String(one.services)), make("td", { class: "code faint" }, one.id)));
  byId("nodes").replaceChildren(make("div", { class: "card scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...[text("node"), text("address"), text("services"), "ID"].map((label) => make("th", { scope: "col" }, label)))),
    make("tbody", {}, ...rows))));
}

function draw() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.documentElement.dataset.theme = theme;
  byId("language").textContent = text("other");
  byId("theme").textContent = text(theme === "dark" ? "light" : "dark");
  byId("filter").placeholder = text("filter");
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  byId("live").dataset.state = state === "live" ? "on" : state === "lost" ? "off" : "";
  byId("live").textContent = text(state);
  if (!picture) return;
  byId("where").textContent = `${picture.node} · ${picture.datacenter} · v${picture.version}`;
  drawCards();
  drawChips();
  const wanted = byId("filter").value.trim().toLowerCase();
  const focused = document.activeElement?.closest?.("details")?.dataset.service;
  const shown = picture.services.filter((service) => fits(service, wanted));
  byId("services").replaceChildren(...(shown.length ? shown.map(drawService)
    : [make("p", { class: "empty" }, text(picture.services.length > 1 || wanted || only ? "nothing" : "none"))]));
  if (focused) document.querySelector(`details[data-service="${CSS.escape(focused)}"] summary`)?.focus();
  drawNodes();
  known = new Set(picture.services.flatMap((service) => service.instances.map((one) => `${service.name}\n${one.node}\n${one.id}\n${one.status}`)));
}

function follow() {
  const stream = new EventSource("/ui/api/events");
  stream.addEventListener("open", () => { state = "live"; draw(); });
  stream.addEventListener("error", () => { state = "lost"; draw(); });
  stream.addEventListener("picture", (event) => { picture = JSON.parse(event.data); state = "live"; draw(); });
}

byId("language").addEventListener("click", () => { language = language === "zh" ? "en" : "zh"; remember("language", language); draw(); });
byId("theme").addEventListener("click", () => { theme = theme === "dark" ? "light" : "dark"; remember("theme", theme); draw(); });
byId("filter").addEventListener("input", draw);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== byId("filter")) { event.preventDefault(); byId("filter").focus(); }
  if (event.key === "Escape" && document.activeElement === byId("filter")) { byId("filter").value = ""; byId("filter").blur(); draw(); }
});
draw();
follow();
