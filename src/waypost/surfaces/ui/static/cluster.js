// The page of the cluster: who leads, which servers there are, who is a member. Asked for again while it is looked at.

import { askJson, card, make, pause, table, text } from "/ui/base.js";

const EVERY_MS = 2000;
const STATUS = { 1: "alive", 2: "leaving", 3: "left", 4: "failed" };
const COLOUR = { alive: "passing", leaving: "warning", left: "maintenance", failed: "critical" };

const settled = async (promise) => { try { return [await promise, null]; } catch (error) { return [null, error]; } };
const colourOf = (server) => (server.Healthy ? "passing" : "critical");

async function look(signal) {
  const [[members, refusal], [health], [raft], [datacenters]] = await Promise.all([
    settled(askJson("/v1/agent/members", { signal })),
    // An unhealthy cluster is an answer too, of status 429.
    settled(fetchHealth(signal)), settled(askJson("/v1/operator/raft/configuration?stale", { signal })),
    settled(askJson("/v1/catalog/datacenters", { signal })),
  ]);
  return { members: members || [], refusal, health, raft, datacenters: datacenters || [] };
}

async function fetchHealth(signal) {
  try {
    return await askJson("/v1/operator/autopilot/health", { signal });
  } catch (error) {
    if (error.status === 429) return JSON.parse(error.message);
    throw error;
  }
}

function roleOf(server) {
  if (server.Leader) return make("b", {}, text("leads"));
  return text(server.Voter ? "follower" : "learner");
}

function serverRows(picture, { health, raft }) {
  if (health) {
    return health.Servers.map((one) => make("tr", {},
      make("td", {}, make("span", { class: `dot ${colourOf(one)}` }, one.Name)), make("td", {}, roleOf(one)),
      make("td", { class: "code" }, one.Address), make("td", {}, text(one.SerfStatus)), make("td", {}, one.LastContact),
      make("td", {}, String(one.LastIndex)), make("td", { class: "code faint" }, one.ID)));
  }
  // Without a leader nobody can tell how the servers stand: what the catalog knows of them is shown.
  return (raft?.Servers || picture.nodes.filter((one) => one.is_server)).map((one) => make("tr", {},
    make("td", {}, one.Node || make("span", { class: `dot ${one.status}` }, one.name)), make("td", {}, one.Node ? roleOf(one) : "–"),
    make("td", { class: "code" }, one.Address || one.address), make("td", {}, one.status ? text(one.status) : "–"),
    make("td", {}, "–"), make("td", {}, "–"), make("td", { class: "code faint" }, one.ID || one.id)));
}

function memberRow(one) {
  const status = STATUS[one.Status] || "unknown";
  return make("tr", {},
    make("td", {}, make("span", { class: `dot ${COLOUR[status] || "faint"}` }, one.Name)),
    make("td", {}, text(one.Tags.role === "consul" ? "server" : "client")), make("td", { class: "code" }, one.Addr),
    make("td", {}, text(status)), make("td", { class: "code faint" }, one.Tags.id || ""));
}

function leaderName(picture, found) {
  if (!picture.leader.is_known) return text("nobody");
  const leads = (found.health?.Servers || []).find((one) => one.Leader)?.Name || found.raft?.Servers.find((one) => one.Leader)?.Node;
  return leads || picture.leader.address || text("alone");
}

function draw(page, picture, found) {
  const up = found.health ? found.health.Servers.filter((one) => one.Healthy).length : null;
  const servers = serverRows(picture, found);
  page.replaceChildren(
    make("section", { class: "cards" },
      card(leaderName(picture, found), text("leader"), picture.leader.is_known ? "" : "critical"),
      card(up === null ? "–" : `${up} / ${found.health.Servers.length}`, text("serversUp"), up !== null && up < found.health.Servers.length ? "critical" : ""),
      card(found.health ? found.health.FailureTolerance : "–", text("tolerance")),
      card(found.members.filter((one) => one.Status === 1).length, `${text("members")} (${text("alive")})`),
      card(picture.revision, text("index")), card(found.datacenters.join(", ") || picture.datacenter, text("datacenters"))),
    ...(servers.length ? [make("h2", {}, text("servers")),
      table([text("node"), text("role"), text("address"), text("status"), text("lastContact"), text("index"), "ID"], servers)] : []),
    make("h2", {}, text("members")),
    found.refusal ? make("p", { class: "empty" }, `${text("membersFailed")} ${found.refusal.message}`)
      : table([text("node"), text("role"), text("address"), text("status"), "ID"], found.members.map(memberRow)));
}

export async function runCluster(page, { picture, signal }) {
  while (!signal.aborted) {
    const found = await look(signal);
    if (signal.aborted) return;
    if (picture()) draw(page, picture(), found);
    await pause(picture() ? EVERY_MS : 100, signal);
  }
}
