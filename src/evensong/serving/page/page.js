// The page for people: asks the service's own addresses and shows the answers. Text enters the page only as text.
"use strict";

const $ = (id) => document.getElementById(id);
const SOURCES = {
  unknown_user: "Nobody knows this user yet, so these are the popular items.",
  no_history: "This user has no history to learn from yet, so these are the popular items.",
  nothing_left: "This user has seen, or the request excludes, everything that could be recommended.",
  features_unavailable: "This user's features cannot be read at the moment, so these are the popular items.",
  features_redefined: "The features have another meaning than this version learnt, so these are the popular items.",
  item_features_unavailable: "Item features cannot be read at the moment, so these are the popular items.",
  model_failed: "The model failed on this request, so these are the popular items; the log says why.",
};
let asked = 0;

async function get(path) {
  let response;
  try {
    response = await fetch(path, { headers: { accept: "application/json" } });
  } catch {
    throw { message: "The service does not answer.", what_to_do: "Is it running? Start it with `evensong serve`." };
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw (body && body.error) || { message: `The service answered ${response.status}.`, what_to_do: "Try again." };
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = text;
  return made;
}

function show(id, isShown) {
  $(id).hidden = !isShown;
}

function tellProblem(error) {
  const box = $("problem");
  box.replaceChildren(element("strong", "", error.message || "Something went wrong."));
  if (error.what_to_do) box.append(element("p", "", error.what_to_do));
  if (error.request_id) box.append(element("p", "about", `Request ${error.request_id}`));
  box.hidden = false;
}

function day(time) {
  return time ? time.slice(0, 10) : "";
}

function describe(title, itemId, category) {
  const box = element("div");
  box.append(element("div", "title", title || itemId));
  const about = [category, title ? itemId : null].filter(Boolean).join(" · ");
  if (about) box.append(element("div", "about", about));
  return box;
}

function showItems(answer) {
  const scores = answer.items.map((item) => item.score);
  const low = Math.min(...scores), span = Math.max(...scores) - low;
  const rows = answer.items.map((item) => {
    const row = element("li");
    const score = element("div", "score");
    const meter = element("meter");
    meter.min = 0;
    meter.max = 1;
    meter.value = span > 0 ? 0.08 + 0.92 * (item.score - low) / span : 1;
    meter.setAttribute("aria-hidden", "true");
    const number = element("span", "", item.score.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 3 }));
    number.setAttribute("aria-label", `score ${number.textContent}`);
    score.append(number, meter);
    row.append(element("span", "rank", String(item.rank)), describe(item.title, item.item_id, item.category), score);
    return row;
  });
  $("items").replaceChildren(...rows);
  show("no-items", rows.length === 0);
  const version = `Model version ${answer.model_version}` + (answer.model_as_of ? `, trained on what was known on ${day(answer.model_as_of)}` : "");
  const hidden = { seen: "Items already seen are left out.", purchased: "Items already bought are left out.", none: "" }[answer.filter];
  $("source").textContent = answer.source === "model"
    ? `${version}. ${hidden}`
    : `${SOURCES[answer.reason] || "These are the popular items."} ${version}. ${hidden}`;
}

function showHistory(history) {
  const rows = history.events.map((event) => {
    const row = element("li");
    row.append(describe(event.title, event.item_id, event.category), element("span", "event", event.event_type || ""));
    return row;
  });
  $("history").replaceChildren(...rows);
  show("no-history", rows.length === 0);
  $("no-history").textContent = history.known ? "Nothing that tells a taste yet." : "Nobody knows this user.";
  const parts = [];
  if (history.known) {
    parts.push(`${history.num_interactions} interactions` + (history.last_interaction ? `, the last on ${day(history.last_interaction)}` : ""));
    if (history.top_categories.length) parts.push(`likes ${history.top_categories.join(", ")}`);
    if (rows.length) parts.push("newest first");
  }
  $("taste").textContent = parts.join(" · ");
}

async function recommend(user, k, remember) {
  const mine = ++asked;
  show("problem", false);
  show("start", false);
  document.querySelector("main").setAttribute("aria-busy", "true");
  $("user").value = user;
  for (const chip of $("sample").querySelectorAll("button")) {
    chip.setAttribute("aria-pressed", String(chip.dataset.user === user));
  }
  if (remember) {
    const address = new URLSearchParams({ user, k });
    history.pushState(null, "", `?${address}`);
  }
  const [items, past] = await Promise.allSettled([
    get(`/recommend?${new URLSearchParams({ user_id: user, k })}`),
    get(`/users/${encodeURIComponent(user)}/history`),
  ]);
  // an answer that was overtaken by a newer question is dropped
  if (mine !== asked) return;
  document.querySelector("main").removeAttribute("aria-busy");
  show("result", items.status === "fulfilled");
  if (items.status === "rejected") {
    tellProblem(items.reason);
    return;
  }
  $("recommended").textContent = `Recommended for ${user}`;
  showItems(items.value);
  if (past.status === "fulfilled") {
    showHistory(past.value);
  } else {
    showHistory({ events: [], known: true, top_categories: [], num_interactions: 0 });
    $("taste").textContent = "";
    $("no-history").textContent = `${past.reason.message} ${past.reason.what_to_do || ""}`;
  }
  if (remember) $("recommended").focus({ preventScroll: true });
  showModel();
}

async function showModel() {
  try {
    const ready = await get("/readyz");
    const age = ready.features_as_of ? ` · features of ${day(ready.features_as_of)}` : "";
    $("model").textContent = `${ready.model.name} version ${ready.model.version} · ${ready.model.num_items} items${age}`;
    if (ready.warnings.length) tellProblem({ message: ready.warnings.join(" ") });
    return true;
  } catch (error) {
    $("model").textContent = "No model is loaded.";
    tellProblem(error);
    return false;
  }
}

async function offer(startsWith) {
  const query = new URLSearchParams({ limit: "50", starts_with: startsWith });
  const found = await get(`/users?${query}`).catch(() => ({ users: [] }));
  $("known").replaceChildren(...found.users.map((user) => {
    const option = element("option");
    option.value = user.user_id;
    return option;
  }));
  return found.users;
}

async function showSample() {
  const users = await offer("");
  const chips = users.slice(0, 12).map((user) => {
    const chip = element("button", "", user.user_id);
    chip.type = "button";
    chip.dataset.user = user.user_id;
    chip.title = `${user.num_interactions} interactions`;
    chip.setAttribute("aria-pressed", "false");
    chip.addEventListener("click", () => recommend(user.user_id, $("k").value, true));
    const entry = element("li");
    entry.append(chip);
    return entry;
  });
  $("sample").replaceChildren(...chips);
  return chips.length;
}

function fromAddress() {
  const address = new URLSearchParams(location.search);
  const k = address.get("k");
  if (k && [...$("k").options].some((option) => option.value === k)) $("k").value = k;
  const user = address.get("user");
  if (user) {
    recommend(user, $("k").value, false);
  } else {
    show("result", false);
    show("start", true);
  }
}

async function begin() {
  let typing;
  $("user").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => offer($("user").value), 150);
  });
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("user").value) recommend($("user").value, $("k").value, true);
  });
  addEventListener("popstate", fromAddress);
  const isReady = await showModel();
  const count = await showSample();
  if (!isReady) {
    // come back by itself when the model has been loaded
    setTimeout(async function again() {
      if (await get("/readyz").then(() => true, () => false)) location.reload();
      else setTimeout(again, 3000);
    }, 3000);
    $("start").textContent = "The service has no model yet. This page goes on by itself when it has.";
    return;
  }
  if (!count) $("start").textContent = "No user chosen yet. There is no list to choose from; any id can be typed.";
  fromAddress();
}

begin();
