// The page: asks for the overview, draws it, sends the three moves. Everything that came from elsewhere is put in as text.

const LOOK_SECONDS = 20;
const base = new URL("./", document.baseURI);
const at = (id) => document.getElementById(id);
let shown = null;
let drawn = "";

// ------------------------------------------------------------------ building

const SVG = "http://www.w3.org/2000/svg";
const UNDERSTOOD = { class: "className", text: "textContent" };

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (name in UNDERSTOOD) element[UNDERSTOOD[name]] = value;
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// ------------------------------------------------------------------ words

const day = (text) => text.slice(0, 10);
const minute = (text) => `${text.slice(0, 10)} ${text.slice(11, 16)} UTC`;
const nightName = (asOf) => (asOf.slice(11, 16) === "00:00" ? day(asOf) : `${day(asOf)} ${asOf.slice(11, 16)}`);
const figure = (value) => (value === null || value === undefined ? "–" : value.toFixed(4));
const signed = (value) => (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(4);

function span(seconds) {
  const parts = [[86400, "day"], [3600, "hour"], [60, "minute"]];
  for (const [size, name] of parts) {
    const count = Math.floor(seconds / size);
    if (count >= 1) return `${count} ${name}${count === 1 ? "" : "s"}`;
  }
  return "";
}
const ago = (text) => {
  const said = span((Date.now() - Date.parse(text)) / 1000);
  return said ? `${said} ago` : "just now";
};
const ahead = (text) => {
  const seconds = (Date.parse(text) - Date.now()) / 1000;
  return seconds > 60 ? `in ${span(seconds)}` : "within a minute";
};

/** What was said of the champion first: it is what a night is about. */
const decisive = (reasons) => [...reasons].sort((one, other) => / champion v/.test(other) - / champion v/.test(one));

function who(actor) {
  if (actor === "rule:gate") return "the gate";
  if (actor === "rule:deadline") return "the deadline";
  return actor.replace(/^person:/, "").replace(/^rule:/, "rule ");
}

// ------------------------------------------------------------------ links

/** A frame of Airflow's may open no window of its own: the page around it opens the link instead. */
function link(text, href) {
  const address = new URL(href, base).href;
  const element = make("a", { href: address, target: "_blank", rel: "noopener", text });
  element.addEventListener("click", (event) => {
    if (window.parent === window) return;
    event.preventDefault();
    const outside = window.parent.document.createElement("a");
    Object.assign(outside, { href: address, target: "_blank", rel: "noopener" });
    outside.click();
  });
  return element;
}

const evidence = (row) =>
  make("div", { class: "links" }, row.has_dossier ? link("Dossier", `dossier/${row.version}`) : "", link("In MLflow", row.url));

// ------------------------------------------------------------------ asking

async function ask(path, body) {
  const request = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(new URL(path, base), { credentials: "same-origin", ...request });
  const content = await answer.json().catch(() => ({}));
  if (answer.ok) return content;
  const detail = Array.isArray(content.detail) ? content.detail.map((one) => one.msg).join("; ") : content.detail;
  const error = new Error(detail || `Airflow answered ${answer.status}`);
  error.status = answer.status;
  throw error;
}

function tell(id, ...lines) {
  at(id).replaceChildren(...lines.map((line) => (typeof line === "string" ? make("p", { text: line }) : line)));
  at(id).hidden = lines.length === 0;
}

async function look() {
  try {
    shown = await ask("api/overview");
  } catch (error) {
    at("main").setAttribute("aria-busy", "false");
    if (error.status === 401) tell("problem", "Airflow does not know you any more.", make("p", {}, link("Log in", "/")));
    else if (error.status === 403) tell("problem", "You may not read the DAG nightly_retraining, and so not this page either.");
    else tell("problem", `The registry cannot be shown: ${error.message}`);
    return;
  }
  tell("problem", ...shown.overview.problems.map((line) => `The ledger: ${line}`));
  const text = JSON.stringify(shown);
  if (text !== drawn && !isTyping()) {
    drawn = text;
    show();
  }
  at("main").setAttribute("aria-busy", "false");
}

/** Somebody writes a comment: what is drawn anew would take it away. */
const isTyping = () => [...document.querySelectorAll("#reviews input")].some((input) => input.value || input === document.activeElement);

// ------------------------------------------------------------------ drawing

function show() {
  const { overview } = shown;
  const nothing = overview.nights.length === 0 && !overview.champion;
  const mode = { auto: "the gate decides alone", review: "a person agrees to every promotion", review_when_doubtful: "a person decides where the gate doubts" };
  at("about").textContent = `${overview.model} · judged on ${overview.metric} · ${mode[overview.mode]}`;
  at("who").textContent = shown.may_review && shown.may_roll_back ? "" : `${shown.user}: you may look, and not move the champion`;
  at("who").hidden = !at("who").textContent;
  at("empty").hidden = !nothing;
  at("waiting").hidden = overview.waiting.length === 0;
  at("reviews").replaceChildren(...overview.waiting.map(review));
  at("now").hidden = nothing;
  at("past").hidden = nothing;
  at("champion").replaceChildren(...champion(overview));
  curve();
  nights(overview);
  at("moves").replaceChildren(...moves(overview));
}

function champion(overview) {
  const now = overview.champion;
  if (!now) return [make("p", { class: "soft", text: "No version is champion yet: no night was promoted." })];
  const rows = [
    ["Night", nightName(now.as_of)],
    ["Since", now.since ? `${minute(now.since)}, ${ago(now.since)}` : "unknown: another hand moved the alias"],
    ["By", who(now.by)],
    [overview.metric, figure(now.figure)],
  ];
  const back = make("button", {
    class: "quiet-danger",
    id: "roll-back",
    disabled: !shown.may_roll_back || !now.rolls_back_to,
    text: now.rolls_back_to ? `Roll back to version ${now.rolls_back_to} …` : "Nothing to roll back to",
    onclick: () => confirmRollback(now),
  });
  return [
    make("p", { class: "number", text: `Version ${now.version}` }),
    make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })])),
    evidence(now),
    back,
  ];
}

function review(row) {
  const against = row.compared_with ? `against champion version ${row.compared_with}` : "no champion before";
  const comes = row.default === "promote" ? "it is promoted" : "the champion stays";
  const comment = make("input", { id: `comment-${row.version}`, maxlength: "1000", placeholder: "checked the titles", disabled: !shown.may_review });
  const error = make("p", { class: "error", role: "alert", hidden: true });
  const answer = (outcome) => () => say(row, outcome, comment, error);
  const lines = [...row.doubts.map((text) => make("li", { class: "doubt", text })), ...decisive(row.reasons).filter((text) => !row.doubts.includes(text)).map((text) => make("li", { text }))];
  return make(
    "article",
    { class: "review", "aria-label": `Review of version ${row.version}` },
    make(
      "div",
      { class: "top" },
      make("h3", { text: `Version ${row.version}, night of ${nightName(row.as_of)}` }),
      make("span", { class: row.promote ? "chip good" : "chip wait", text: row.promote ? "the evidence says promote" : "the gate is in doubt" }),
    ),
    make("p", { class: "soft", text: `Asked ${ago(row.asked_at)}, ${against}. Without an answer ${ahead(row.deadline)} (${minute(row.deadline)}) ${comes}.` }),
    make(
      "div",
      { class: "inside" },
      row.gains.length ? gains(row) : "",
      make("div", {}, lines.length ? make("ul", {}, ...lines) : "", row.note ? make("p", { class: "error", text: `The tag review: ${row.note}` }) : "", evidence(row)),
    ),
    make(
      "div",
      { class: "answer" },
      make("div", { class: "field" }, make("label", { for: comment.id, text: "Comment, for the ledger" }), comment),
      make("button", { class: "good", text: "Approve", disabled: !shown.may_review, onclick: answer("approved") }),
      make("button", { class: "quiet-danger", text: "Reject", disabled: !shown.may_review, onclick: answer("rejected") }),
    ),
    error,
  );
}

/** The gain on each metric with its interval, on one scale around zero; the primary metric first. */
function gains(row) {
  const primary = shown.overview.metric;
  const rows = [...row.gains].sort((one, other) => (other.metric === primary) - (one.metric === primary) || (other.lower !== null) - (one.lower !== null));
  const reach = Math.max(1e-9, ...rows.flatMap((one) => (one.lower === null ? [] : [Math.abs(one.lower), Math.abs(one.upper)]))) * 1.08;
  const cells = rows.map((one) => {
    const known = one.lower !== null;
    const value = known ? `${signed(one.mean)} (${signed(one.lower)} … ${signed(one.upper)})` : `${figure(one.challenger)}${row.compared_with ? `, was ${figure(one.champion)}` : ""}`;
    return make("div", { class: one.metric === primary ? "gain primary" : "gain" }, make("span", { class: "name", text: one.metric }), known ? whisker(one, reach) : "", make("span", { class: "value", text: value }));
  });
  return make("div", {}, make("p", { class: "soft", text: row.compared_with ? `Gain on champion version ${row.compared_with}` : "Figures of the challenger" }), make("div", { class: "gains" }, ...cells));
}

function whisker(one, reach) {
  const x = (value) => 100 + (value / reach) * 98;
  const sign = one.lower > 0 ? "up" : one.upper < 0 ? "down" : "";
  return draw(
    "svg",
    { viewBox: "0 0 200 20", preserveAspectRatio: "none", role: "img", "aria-hidden": "true" },
    draw("line", { class: "zero", x1: 100, x2: 100, y1: 0, y2: 20 }),
    draw("line", { class: `whisker ${sign}`, x1: x(one.lower), x2: x(one.upper), y1: 10, y2: 10 }),
    draw("rect", { class: "mean", x: x(one.mean) - 1, y: 4, width: 2, height: 12 }),
  );
}

/** The primary metric of each night: challenger, champion and popularity on that night's users. */
function curve() {
  const { overview } = shown;
  const rows = [...overview.nights].reverse().filter((row) => row.figures.challenger !== null);
  const values = rows.flatMap((row) => Object.values(row.figures).filter((value) => value !== null));
  if (!values.length) {
    at("curve").replaceChildren(make("p", { class: "soft", text: "No night has figures yet." }));
    return;
  }
  const width = Math.max(260, at("curve").clientWidth || 600), height = 230;
  const left = 44, right = 14, top = 12, bottom = 26;
  let low = Math.min(...values), high = Math.max(...values);
  const room = (high - low || high || 1) * 0.12;
  low = Math.max(0, low - room);
  high += room;
  const x = (index) => (rows.length === 1 ? (left + width - right) / 2 : left + (index / (rows.length - 1)) * (width - left - right));
  const y = (value) => top + (1 - (value - low) / (high - low)) * (height - top - bottom);
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${overview.metric} of the last ${rows.length} nights` });
  for (const share of [0, 1 / 3, 2 / 3, 1]) {
    const value = low + share * (high - low);
    picture.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }), draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(3)));
  }
  const every = Math.ceil(rows.length / Math.max(2, Math.floor((width - left) / 80)));
  rows.forEach((row, index) => {
    if (index % every) return;
    const anchor = index === 0 ? "start" : index === rows.length - 1 ? "end" : "middle";
    picture.append(draw("text", { x: x(index), y: height - 6, "text-anchor": anchor }, day(row.as_of).slice(5)));
  });
  for (const [name, css] of [["popularity", "popular"], ["champion", "champion-line"], ["challenger", "challenger"]]) {
    let path = "", pen = "M";
    rows.forEach((row, index) => {
      const value = row.figures[name];
      if (value === null) { pen = "M"; return; }
      path += `${pen}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    });
    if (path) picture.append(draw("path", { class: `line ${css}`, d: path }));
  }
  rows.forEach((row, index) => {
    const point = { cx: x(index), cy: y(row.figures.challenger) };
    const title = draw("title", {}, `Night of ${nightName(row.as_of)}, version ${row.version}: ${STATES[row.state]?.[0] ?? row.state}\nchallenger ${figure(row.figures.challenger)}, champion ${figure(row.figures.champion)}, popularity ${figure(row.figures.popularity)}`);
    picture.append(draw("g", {}, draw("circle", { class: `dot ${DOTS[row.state] ?? ""}`, ...point, r: row.state === "champion" ? 6 : 4.5 }), draw("circle", { class: "hit", ...point, r: 14 }), title));
  });
  const key = (text, ...parts) => make("span", {}, draw("svg", { viewBox: "0 0 24 10" }, ...parts), text);
  const stroke = (css) => draw("path", { class: `line ${css}`, d: "M1 5L23 5" });
  const dot = (css) => draw("circle", { class: `dot ${css}`, cx: 12, cy: 5, r: 4 });
  at("curve").replaceChildren(
    picture,
    make("figcaption", { class: "legend" }, key("promoted", dot("promoted")), key("kept back", dot("")), key("waits", dot("wait")), key("rejected or rolled back", dot("bad")), key("champion on the same users", stroke("champion-line")), key("popularity", stroke("popular"))),
  );
}

const STATES = {
  champion: ["champion", "good"],
  "was champion": ["promoted", "good"],
  "rolled back": ["rolled back", "bad"],
  rejected: ["rejected", "bad"],
  waits: ["waits for review", "wait"],
  approved: ["approved", "good"],
  kept: ["kept back", ""],
  "not judged": ["not judged", ""],
};
const DOTS = { champion: "promoted", "was champion": "promoted", approved: "promoted", "rolled back": "bad", rejected: "bad", waits: "wait" };
const RUNS = { failed: ["failed", "bad"], running: ["running", "wait"], queued: ["queued", "wait"] };

function nights(overview) {
  const known = new Set(overview.nights.flatMap((row) => [row.airflow_run, Date.parse(row.as_of)]));
  const rows = [
    ...overview.nights.map((row) => ({ at: row.as_of, cells: nightCells(row) })),
    ...shown.runs.filter((run) => run.state in RUNS && !known.has(run.run_id) && !known.has(Date.parse(run.as_of))).map((run) => ({ at: run.as_of ?? run.at, cells: runCells(run) })),
  ].sort((one, other) => (one.at < other.at) - (one.at > other.at)); // of one night the newest version first, as they come
  const head = [["Night"], ["Outcome"], ["Challenger", "figure"], ["Champion", "figure"]];
  at("nights").replaceChildren(
    make(
      "table",
      {},
      make("thead", {}, make("tr", {}, ...head.map(([text, css]) => make("th", { text, class: css ?? "", scope: "col" })))),
      make("tbody", {}, ...rows.slice(0, 20).map((row) => make("tr", {}, ...row.cells))),
    ),
  );
}

function nightCells(row) {
  const [text, css] = STATES[row.state] ?? [row.state, ""];
  const why = row.answer || decisive(row.reasons).join("; ");
  const said = make("p", { class: "why", text: why, title: why, onclick: () => said.classList.toggle("open") });
  return [
    make("td", {}, make("div", { class: "night", text: nightName(row.as_of) }), make("div", { class: "version" }, row.has_dossier ? link(`version ${row.version}`, `dossier/${row.version}`) : `version ${row.version}`)),
    make("td", { class: "said" }, make("span", { class: `chip ${css}`, text }), said),
    make("td", { class: "figure", "data-label": "challenger", text: figure(row.figures.challenger) }),
    make("td", { class: "figure", "data-label": "champion", text: figure(row.figures.champion) }),
  ];
}

function runCells(run) {
  const [text, css] = RUNS[run.state];
  return [
    make("td", {}, make("div", { class: "night", text: nightName(run.as_of ?? run.at) }), make("div", { class: "version" }, link("run", `/dags/nightly_retraining/runs/${encodeURIComponent(run.run_id)}`))),
    make("td", { class: "said" }, make("span", { class: `chip ${css}`, text }), make("p", { class: "why", text: run.state === "failed" ? "no version: look at the run" : "no version yet" })),
    make("td", { class: "figure", "data-label": "challenger", text: "–" }),
    make("td", { class: "figure", "data-label": "champion", text: "–" }),
  ];
}

function moved(move) {
  if (move.kind === "adopt") return move.from_version === move.to_version ? "The ledger as it stands, acknowledged" : `Version ${move.to_version}, put there by another hand, acknowledged`;
  if (move.kind === "rollback") return `Back from ${move.from_version} to ${move.to_version}`;
  return move.from_version ? `Version ${move.to_version} in place of ${move.from_version}` : `Version ${move.to_version}, the first`;
}

function moves(overview) {
  if (!overview.moves.length) return [make("p", { class: "soft", text: "The champion has not moved yet." })];
  return overview.moves.map((move) => {
    const what = moved(move);
    return make(
      "li",
      { class: move.kind },
      make("p", { class: "what", text: what }),
      make("p", { class: "soft", text: `${minute(move.at)} · ${who(move.by)}` }),
      make("p", { class: "why", text: decisive(move.reason.split("; ")).join("; "), title: move.reason }),
    );
  });
}

// ------------------------------------------------------------------ moves

async function say(row, outcome, comment, error) {
  const buttons = comment.closest(".answer").querySelectorAll("button");
  buttons.forEach((button) => { button.disabled = true; });
  error.hidden = true;
  try {
    const words = comment.value.trim() || `${outcome} on the page`;
    await ask(`api/reviews/${row.version}`, { outcome, comment: words });
    comment.value = "";
    comment.blur();
    tell("done", `Version ${row.version} is ${outcome}.`);
    drawn = "";
    await look();
  } catch (problem) {
    error.textContent = problem.message;
    error.hidden = false;
    buttons.forEach((button) => { button.disabled = false; });
  }
}

function confirmRollback(now) {
  at("rollback-what").textContent =
    `Version ${now.rolls_back_to} serves again in place of version ${now.version}, at once and without a restart. ` +
    `No night promotes version ${now.version} again until a person does.`;
  at("rollback-error").hidden = true;
  at("rollback-confirm").onclick = async () => {
    const reason = at("rollback-reason").value.trim();
    if (reason.length < 3) {
      at("rollback-error").textContent = "Say why in a few words.";
      at("rollback-error").hidden = false;
      at("rollback-reason").focus();
      return;
    }
    at("rollback-confirm").disabled = true;
    try {
      const moved = await ask("api/rollback", { expected: now.version, reason });
      at("rollback").close();
      at("rollback-reason").value = "";
      tell("done", `Version ${moved.champion} is the champion again.`);
      drawn = "";
      await look();
    } catch (problem) {
      at("rollback-error").textContent = problem.message;
      at("rollback-error").hidden = false;
    } finally {
      at("rollback-confirm").disabled = false;
    }
  };
  at("rollback").showModal();
  at("rollback-reason").focus();
}

at("rollback-cancel").addEventListener("click", () => at("rollback").close());
at("to-dag").replaceWith(link("nightly_retraining", "/dags/nightly_retraining"));
new ResizeObserver(() => { if (shown && !at("now").hidden) curve(); }).observe(at("now"));
await look();
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
setInterval(() => { if (!document.hidden) look(); }, LOOK_SECONDS * 1000);
