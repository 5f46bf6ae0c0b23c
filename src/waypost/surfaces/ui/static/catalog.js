// The pages of services and nodes, drawn from the picture that the agent sends.

import { ask, attempt, byId, card, decide, endpoint, make, text } from "/ui/base.js";

const STATES = ["critical", "warning", "maintenance", "passing"];
const opened = new Set(JSON.parse(sessionStorage.getItem("open") || "[]"));
const wanted = { services: "", nodes: "" };
let only = null;
let known = null;

const keyOf = (service, one) => `${service.name}\n${one.node}\n${one.id}\n${one.status}`;
const includes = (words, searched) => words.some((word) => word.toLowerCase().includes(searched));

function details(key, summary, body) {
  return make("details", {
    class: "service", open: opened.has(key), "data-key": key,
    ontoggle: (event) => {
      opened[event.target.open ? "add" : "delete"](key);
      sessionStorage.setItem("open", JSON.stringify([...opened]));
    },
  }, make("summary", {}, ...summary), body);
}

function bar(kind, redraw, extra) {
  const input = make("input", {
    id: "filter", type: "search", autocomplete: "off", spellcheck: "false", placeholder: text(kind === "nodes" ? "filterNodes" : "filterServices"),
    "aria-label": text(kind === "nodes" ? "filterNodes" : "filterServices"),
    oninput: () => { wanted[kind] = input.value; redraw(); },
  });
  input.value = wanted[kind];
  return make("div", { class: "bar" }, make("label", { class: "search" }, input), extra);
}

function chips(redraw) {
  return make("div", { class: "chips", role: "group" }, ...STATES.map((name) => make("button", {
    class: "chip", type: "button", "aria-pressed": String(only === name),
    onclick: () => { only = only === name ? null : name; redraw(); },
  }, make("span", { class: `dot ${name}` }, text(name)))));
}

const checkList = (checks) => (checks.length
  ? make("ul", { class: "checks" }, ...checks.map((check) => make("li", {},
    make("span", { class: `dot ${check.status}` }, check.name),
    check.output ? make("span", { class: "output" }, check.output) : null)))
  : make("span", { class: "faint" }, text("noChecks")));

const metaList = (meta) => (Object.keys(meta).length
  ? make("div", { class: "faint code" }, Object.entries(meta).map(([key, value]) => `${key}=${value}`).join("  ")) : null);

// -- what can be done -------------------------------------------------------------------------------------------------

const NODE_MAINTENANCE = "_node_maintenance";
const SERVICE_MAINTENANCE = "_service_maintenance:";
const REMOVABLE = ["api", ""];

const put = (path, body) => ask(path, { method: "PUT", body: JSON.stringify(body) });
const inMaintenance = (checks, id) => checks.some((check) => check.id === id);

// Maintenance is a critical check of a known name, as Consul's agents make it, so any node's can be set from here.
function maintenanceButton(what, node, checks, serviceId) {
  const id = serviceId === null ? NODE_MAINTENANCE : SERVICE_MAINTENANCE + serviceId;
  const isOn = inMaintenance(checks, id);
  const set = async () => {
    if (isOn) { await attempt(() => put("/v1/catalog/deregister", { Node: node, CheckID: id })); return; }
    const reason = await decide(`${text("maintenanceAsk")} ${what}`, { action: text("maintenanceOn"), reason: text("reason") });
    if (reason === null) return;
    const Check = {
      Node: node, CheckID: id, Name: serviceId === null ? "Node Maintenance Mode" : "Service Maintenance Mode", Status: "critical",
      Notes: reason || text("noReason"), ServiceID: serviceId ?? "",
    };
    await attempt(() => put("/v1/catalog/register", { Node: node, SkipNodeUpdate: true, Check }));
  };
  return make("button", { type: "button", class: "small", "data-do": "maintenance", onclick: set }, text(isOn ? "maintenanceOff" : "maintenanceOn"));
}

function removeButton(one) {
  const remove = async () => {
    if (await decide(`${text("deregisterAsk")} ${one.id}`, { action: text("deregister"), isDangerous: true }) === null) return;
    await attempt(() => put("/v1/catalog/deregister", { Node: one.node, ServiceID: one.id }));
  };
  return make("button", { type: "button", class: "small danger", "data-do": "deregister", onclick: remove }, text("deregister"));
}

const instanceActions = (one) => (one.owner === "self" ? null : make("div", { class: "doings" },
  maintenanceButton(one.id, one.node, one.checks, one.id),
  REMOVABLE.includes(one.owner) ? removeButton(one) : null));

// -- rows -------------------------------------------------------------------------------------------------------------

function instanceRow(service, one) {
  return make("tr", { class: known && !known.has(keyOf(service, one)) ? "flash" : null },
    make("td", {}, make("span", { class: `dot ${one.status}` }, text(one.status))),
    make("td", {}, make("span", { class: "code" }, one.id), make("br"), make("span", { class: "faint" }, text("owner")[one.owner] ?? one.owner), metaList(one.meta)),
    make("td", {}, one.node), make("td", { class: "code" }, endpoint(one.address, one.port)), make("td", {}, checkList(one.checks)),
    make("td", {}, instanceActions(one)));
}

function serviceDetails(service) {
  const health = STATES.filter((name) => service.counts[name]).map((name) =>
    make("span", { class: `dot ${name}`, title: text(name) }, String(service.counts[name])));
  const body = make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...["status", "instance", "node", "address", "checks"].map((key) => make("th", { scope: "col" }, text(key))),
      make("th", { scope: "col" }, make("span", { class: "hidden" }, text("actions"))))),
    make("tbody", {}, ...service.instances.map((one) => instanceRow(service, one)))));
  const element = details(service.name, [
    make("span", { class: "name" }, service.name),
    make("span", { class: "tags" }, ...service.tags.map((tag) => make("span", { class: "tag" }, tag))),
    make("span", { class: "health" }, ...health)], body);
  element.dataset.service = service.name;
  return element;
}

function fits(service, searched) {
  if (only && !service.counts[only]) return false;
  return !searched || includes([service.name, ...service.tags, ...service.instances.flatMap((one) => [one.id, one.node, one.address])], searched);
}

export function drawServices(page, picture, redraw) {
  const counts = { passing: 0, warning: 0, critical: 0, maintenance: 0 };
  let instances = 0;
  for (const service of picture.services) {
    instances += service.instances.length;
    for (const name of Object.keys(counts)) counts[name] += service.counts[name] || 0;
  }
  const bad = counts.critical + counts.maintenance;
  const searched = wanted.services.trim().toLowerCase();
  const shown = picture.services.filter((service) => fits(service, searched));
  const list = make("section", { id: "services" }, ...(shown.length ? shown.map(serviceDetails)
    : [make("p", { class: "empty" }, text(picture.services.length > 1 || searched || only ? "nothing" : "none"))]));
  page.replaceChildren(
    make("section", { class: "cards" },
      card(picture.services.length, text("services")), card(instances, text("instances")),
      card(counts.passing, text("passing"), "passing"),
      card(counts.warning, text("warning"), counts.warning ? "warning" : ""),
      card(bad, text("critical"), bad ? "critical" : ""), card(picture.nodes.length, text("nodes"))),
    bar("services", redraw, chips(redraw)), list);
  known = new Set(picture.services.flatMap((service) => service.instances.map((one) => keyOf(service, one))));
}

function nodeDetails(node, picture) {
  const own = new Set(node.checks.map((check) => check.id));
  const instances = picture.services.flatMap((service) => service.instances.filter((one) => one.node === node.name).map((one) => [service, one]));
  const body = make("div", { class: "inside" },
    make("div", { class: "doings" }, maintenanceButton(node.name, node.name, node.checks, null)),
    make("p", { class: "faint code" }, `ID ${node.id || "–"}`), metaList(node.meta), checkList(node.checks),
    instances.length ? make("div", { class: "scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, ...["status", "services", "instance", "address", "checks"].map((key) => make("th", { scope: "col" }, text(key))))),
      make("tbody", {}, ...instances.map(([service, one]) => make("tr", {},
        make("td", {}, make("span", { class: `dot ${one.status}` }, text(one.status))), make("td", {}, service.name),
        make("td", { class: "code" }, one.id), make("td", { class: "code" }, endpoint(one.address, one.port)),
        make("td", {}, checkList(one.checks.filter((check) => !own.has(check.id))))))))) : null);
  return details(`node ${node.name}`, [
    make("span", { class: `dot ${node.status} name` }, node.name),
    make("span", { class: "tags" }, make("span", { class: "code faint" }, node.address), node.is_server ? make("span", { class: "tag" }, text("server")) : null),
    make("span", { class: "health faint" }, `${text("instances")}: ${node.services}`)], body);
}

export function drawNodes(page, picture, redraw) {
  const searched = wanted.nodes.trim().toLowerCase();
  const shown = picture.nodes.filter((one) => !searched || includes([one.name, one.address, one.id], searched));
  page.replaceChildren(bar("nodes", redraw, null), make("section", { id: "nodes" },
    ...(shown.length ? shown.map((one) => nodeDetails(one, picture)) : [make("p", { class: "empty" }, text("nothing"))])));
}

// Redrawing replaces every element: what had the focus gets it again, with the cursor where it was.
export function keepingFocus(redraw) {
  const active = document.activeElement;
  const isFilter = active?.id === "filter";
  const at = isFilter ? [active.selectionStart, active.selectionEnd] : null;
  const key = active?.closest?.("details")?.dataset.key;
  redraw();
  if (isFilter) { byId("filter")?.focus(); byId("filter")?.setSelectionRange(...at); }
  else if (key) document.querySelector(`details[data-key="${CSS.escape(key)}"] summary`)?.focus();
}
