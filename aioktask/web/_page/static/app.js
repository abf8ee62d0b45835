// SPDX-License-Identifier: MIT
// The page: gets what there is to see, shows it, and asks for changes.
//
// One stream of events a browser, while a page is visible; where that brings nothing, it asks once a
// second.
// All words come from the server, and go into the page as text.

import { Bar, KeyedList, Line, RowTable, State, cell, element, setAttribute, setText } from "./view.js";
import { Stream } from "./stream.js";
import { MOST_MARKS, Timeline } from "./timeline.js";

const SILENT_MS = 4000; // without a message for so long the stream is taken for broken
const POLL_MS = 1000;
const AGAIN_MS = 15000; // after so long of asking, the stream is tried again
const STATUS_MS = 10000; // how often a screen reader is told what changed, at most

const by = (id) => document.getElementById(id);
let access = "none";
let paused = false;
let latest = null;

// Jobs.

// Who lends a job its nice, in words.
function lent(job) {
  if (job.loan === null) return "";
  const lender = latest?.jobs.find((each) => each.pid === job.pid && each.number === job.lender);
  const who = job.lender === null ? "a task or thread that waits for it" : `${lender ? lender.name : "a job"} (job ${job.lender}), whose chunk waits for it`;
  return `lent ${job.loan} by ${who}`;
}

// Where it stands, in a word: one that has begun may wait again, and one may be stuck.
function stateOf(job) {
  if (job.stuck) return "stuck";
  return job.phase === "running" && !job.threads && job.waits_for ? "waits" : job.phase;
}

// For how long it has been in that state, as far as that is known.
function sinceWhen(job) {
  if (job.stuck) return `${job.phase}, ${job.stuck}`;
  if (job.phase === "waiting") return `for ${job.queued}`;
  if (job.phase !== "running") return `${job.age} old`;
  return stateOf(job) === "waits" ? `began ${job.elapsed} ago` : `for ${job.elapsed}`;
}

// How many units are done; items that raised are among them.
const unitsOf = (job) => job.units + (job.failed ? `, ${job.failed} of them failed` : "");

// What else there is to say of its progress; for how long it goes on is told elsewhere.
const progressOf = (job) => (job.phase === "waiting" || job.text === `for ${job.elapsed}` ? "" : job.text);

// What was raised, and where.
const errorOf = (job) => job.error && (job.error_chunk ? `${job.error} (units ${job.error_chunk})` : job.error);

function jobName(item) {
  const name = element("button", { type: "button", class: "name line", onclick: () => showDetails(item.key) });
  const about = element("div", { class: "line quiet" });
  return {
    node: cell("", name, about),
    patch(job) {
      setText(name, job.name);
      name.title = job.name;
      setText(about, [...job.labels, `${job.kind} ${job.number} of ${job.pid}`].join(" · "));
      about.title = about.textContent;
    },
  };
}

function makeJob(item) {
  const name = jobName(item);
  const state = new State();
  const elapsed = element("div", { class: "line quiet" });
  const bar = new Bar();
  const text = element("div", { class: "line quiet" });
  const rate = cell("right line");
  const threads = cell("right");
  const nice = element("div");
  const loan = element("div", { class: "line quiet" });
  const niceCell = cell("right", nice, loan);
  const waits = element("div", { class: "lines" });
  const waitsCell = cell("", waits);
  const renice = element("button", { type: "button", text: "Renice", onclick: () => askRenice(item.key) });
  const cancel = element("button", { type: "button", text: "Cancel", onclick: () => askCancel(item.key) });
  rate.dataset.label = "rate";
  threads.dataset.label = "threads";
  niceCell.dataset.label = "nice";
  const cells = [name.node, cell("", state.node, elapsed), cell("", bar.node, text), rate, threads, niceCell, waitsCell];
  if (access === "write") cells.push(cell("", element("div", { class: "actions" }, renice, cancel)));
  return {
    node: element("div", {}, ...cells),
    patch(job) {
      name.patch(job);
      state.patch(stateOf(job));
      setText(elapsed, sinceWhen(job));
      bar.patch(job);
      setText(text, [unitsOf(job), progressOf(job)].filter(Boolean).join(", "));
      text.title = text.textContent;
      setText(rate, job.rate || "–");
      setText(threads, job.threads);
      setText(nice, job.nice);
      setText(loan, job.loan === null ? "" : `lent ${job.loan}`);
      niceCell.title = lent(job);
      const why = [errorOf(job), job.waits_for || lent(job)].filter(Boolean).join("; ");
      setText(waits, why);
      setAttribute(waitsCell, "data-label", job.waits_for && !job.error ? "waits for" : null);
      waits.title = why;
      setAttribute(renice, "aria-label", `Renice ${job.name}`);
      setAttribute(cancel, "aria-label", `Cancel ${job.name}`);
    },
  };
}

function makeEnded(item) {
  const name = jobName(item);
  const state = new State();
  const bar = new Bar();
  const text = element("div", { class: "line quiet" });
  const took = cell("right");
  const began = cell("right");
  const ago = cell("right line");
  const error = element("div", { class: "lines" });
  took.dataset.label = "took";
  began.dataset.label = "began after";
  return {
    node: element("div", {}, name.node, cell("", state.node), cell("", bar.node, text), cell("", error), took, began, ago),
    patch(job) {
      name.patch(job);
      state.patch(job.phase);
      bar.patch(job);
      setText(text, job.text + (job.undone ? ` (${job.undone} units)` : "") + (job.failed ? `, ${job.failed} failed` : ""));
      text.title = text.textContent;
      setText(error, errorOf(job));
      error.title = error.textContent;
      setText(took, job.elapsed);
      setText(began, job.begun ? job.queued : "never");
      setText(ago, `${job.ago} ago`);
    },
  };
}

function makeHelper() {
  const name = element("div", { class: "line" });
  const state = new State();
  const serves = element("div", { class: "line" });
  const chunk = cell("line quiet");
  const lasts = cell("right");
  const nice = cell("right");
  const node = cell("right");
  return {
    node: element("div", {}, cell("", name), cell("", state.node), cell("", serves), chunk, lasts, nice, node),
    patch(helper) {
      const who = helper.thread === helper.pid ? "main thread" : helper.inside === null && helper.kind === "caller" ? `caller ${helper.thread}` : helper.thread || "helper";
      setText(name, `${who} of ${helper.pid}`);
      name.title = name.textContent;
      state.patch(helper.stuck ? "stuck" : helper.state);
      const inside = helper.inside === null ? "" : `, inside job ${helper.inside}`;
      setText(serves, helper.job === null ? "–" : `${helper.name || "job"} · ${helper.job}${inside}`);
      serves.title = serves.textContent;
      setText(chunk, helper.chunk ?? "–");
      setText(lasts, helper.lasts || "–");
      setText(nice, helper.nice);
      setText(node, helper.node ?? "–");
    },
  };
}

function makeWorker() {
  const name = element("div", { class: "line" });
  const host = element("div", { class: "line quiet" });
  const state = new State();
  const at = element("div", { class: "line quiet" });
  const serves = cell("line");
  const units = cell("right line");
  const rate = cell("right line");
  const threads = cell("right line");
  const why = element("div", { class: "lines" });
  units.dataset.label = "done";
  rate.dataset.label = "rate";
  threads.dataset.label = "threads";
  return {
    node: element("div", {}, cell("", name, host), cell("", state.node, at), serves, units, rate, threads, cell("", why)),
    patch(worker) {
      setText(name, worker.name);
      name.title = worker.name;
      setText(host, worker.host);
      state.patch(worker.state === "open" ? (worker.at ? "working" : "idle") : worker.state);
      setText(at, worker.at);
      setText(serves, `${worker.of || "job"} · ${worker.job}`);
      setText(units, worker.units);
      setText(rate, worker.rate || "–");
      setText(threads, worker.threads ? `${worker.working} of ${worker.threads}` : "–");
      setText(why, worker.why);
      why.title = worker.why;
    },
  };
}

const endedTable = new RowTable(by("ended"), {
  label: "Jobs that ended lately", make: makeEnded, empty: "No job has ended yet.",
  columns: [{ title: "Job" }, { title: "How it ended" }, { title: "Progress" }, { title: "Why it failed" }, { title: "Took", right: true }, { title: "Began after", right: true }, { title: "Ended", right: true }],
});
const helperTable = new RowTable(by("helpers"), {
  label: "Threads", make: makeHelper, empty: "There are no threads: they come with the first job.",
  columns: [{ title: "Thread" }, { title: "State" }, { title: "Serves" }, { title: "Units" }, { title: "For", right: true }, { title: "Nice", right: true }, { title: "Node", right: true }],
});
const workerTable = new RowTable(by("workers"), {
  label: "Workers of jobs on several processes", make: makeWorker, empty: "No job is on other processes.",
  columns: [{ title: "Worker" }, { title: "State" }, { title: "Job" }, { title: "Done", right: true }, { title: "Rate", right: true }, { title: "Threads", right: true }, { title: "Waits for, or why it is gone" }],
});
let jobTable = null;

function makeJobTable() {
  by("jobs").replaceChildren();
  by("jobs").classList.toggle("reads", access !== "write");
  const columns = [{ title: "Job" }, { title: "State" }, { title: "Progress" }, { title: "Rate", right: true }, { title: "Threads", right: true }, { title: "Nice", right: true }, { title: "Waits for, or lent by" }];
  if (access === "write") columns.push({ title: "Changes", unseen: true });
  jobTable = new RowTable(by("jobs"), { label: "Jobs under way", columns, make: makeJob, empty: "Nothing is under way." });
}

const timeline = new Timeline(by("timeline"), by("canvas"), by("readout"));

// Processes.

// How many threads work; some may more than are allowed now, until their chunks end.
const working = (count, most, what = "") => (count > most ? `${count}${what} work, ${most} at most` : `${count} of ${most}${what} work`);

function makeProcess() {
  const title = element("strong");
  const state = new State();
  const command = element("div", { class: "command mono" });
  const facts = element("dl");
  const rows = new Map();
  const lines = [];
  const loops = element("div");
  const fact = (name, text) => {
    let row = rows.get(name);
    if (!row) {
      row = [element("dt", { text: name }), name === "loop" ? element("dd", {}, loops) : element("dd")];
      rows.set(name, row);
      facts.append(...row);
    }
    for (const each of row) each.hidden = !text;
    if (name !== "loop") setText(row[1], text);
  };
  return {
    node: element("li", { class: "process" }, element("div", { class: "process-head" }, title, state.node), command, facts),
    patch(process) {
      setText(title, `Process ${process.pid}`);
      state.patch(process.state === "silent" ? "does not answer" : process.state);
      setText(command, process.command);
      command.title = process.command;
      fact("state", process.problem && (process.state === "silent" ? `${process.problem}; last seen ${process.age} ago` : `${process.problem}, ${process.age} ago`));
      const counts = Object.entries(process.counts ?? {}).map(([phase, count]) => `${count} ${phase}`);
      fact("jobs", process.counts ? counts.join(", ") || "none" : "");
      const limits = process.limits;
      fact("threads", limits ? working(limits.working, limits.most) : "");
      fact("limit", limits ? [`${limits.threads}: ${limits.reason}`, ...limits.notes].join("; ") : "");
      const slots = process.slots;
      const holders = slots ? slots.holders.map((each) => `process ${each.pid} ${each.held}`) : [];
      fact("slots", slots ? [`holds ${slots.held} of the set ${slots.name}`, slots.busy > 1 ? `${slots.busy} processes want CPUs` : "", holders.length ? `held: ${holders.join(", ")}` : "", slots.refused ? `takes no part: ${slots.refused}` : ""].filter(Boolean).join("; ") : "");
      const watched = process.loops ?? [];
      fact("loop", watched.length ? "yes" : "");
      watched.forEach((loop, at) => {
        lines[at] ??= new Line(`How late the ${loop.kind} loop of process ${process.pid} is`);
        if (process.state === "alive") lines[at].patch(loop.late, `${loop.kind}: ${loop.text}`);
      });
      lines.length = Math.min(lines.length, watched.length);
      if (loops.children.length !== lines.length) loops.replaceChildren(...lines.map((each) => each.node));
    },
  };
}

function makeStuck() {
  const title = element("strong");
  const about = element("p");
  const stack = element("pre", { tabindex: "0" });
  return {
    node: element("li", { class: "item" }, title, about, stack),
    patch(helper) {
      setText(title, helper.name || `job ${helper.job}`);
      setText(about, `at one chunk for ${helper.stuck}${helper.chunk ? ` (${helper.chunk})` : ""}, thread ${helper.thread} of process ${helper.pid}. A cancel waits until it ends.`);
      stack.hidden = !helper.stack.length;
      setText(stack, helper.stack.join("\n"));
    },
  };
}

function makeAdvice() {
  const title = element("strong");
  const text = element("p");
  return {
    node: element("li", { class: "item" }, title, text),
    patch(advice) {
      setText(title, advice.job || `Process ${advice.pid}`);
      setText(text, advice.text);
    },
  };
}

const processes = new KeyedList(by("processes"), makeProcess);
const stuck = new KeyedList(by("stuck"), makeStuck);
const advice = new KeyedList(by("advice"), makeAdvice);

// Showing.

function summaryOf(state) {
  const alive = state.processes.filter((each) => each.state === "alive");
  const silent = state.processes.filter((each) => each.state === "silent").length;
  const work = alive.reduce((sum, each) => sum + each.limits.working, 0);
  const most = alive.reduce((sum, each) => sum + each.limits.most, 0);
  const plural = (count, word, many) => `${count} ${count === 1 ? word : many}`;
  const parts = [`${plural(state.under_way, "job", "jobs")} under way in ${plural(alive.length, "process", "processes")}`, working(work, most, " threads")];
  if (silent) parts.push(`${plural(silent, "process does", "processes do")} not answer`);
  return parts.join(" · ");
}

let toldAt = 0;
let toldText = "";

function tellStatus(text) {
  const now = performance.now();
  if (text !== toldText && (now - toldAt > STATUS_MS || !toldText)) {
    toldAt = now;
    toldText = text;
    setText(by("status"), text);
  }
}

function show(state) {
  if (state.error) {
    showNotice(`The processes cannot be asked: ${state.error}`);
    return;
  }
  showNotice("");
  by("login").hidden = true;
  by("view").hidden = false;
  if (!jobTable) makeJobTable();
  const summary = summaryOf(state);
  setText(by("summary"), summary);
  tellStatus(summary);
  document.title = `${state.under_way} under way · Jobs · aioktask`;
  processes.update(state.processes.map((each) => ({ ...each, key: each.pid })));
  by("no-processes").hidden = !!state.processes.length;
  const stuckNow = state.helpers.filter((each) => each.stuck);
  by("stuck-panel").hidden = !stuckNow.length;
  stuck.update(stuckNow);
  const shown = new Set(stuckNow.map((each) => `${each.pid}:${each.name}`));
  const news = (process) => (process.advice ?? []).filter((each) => each.event !== "chunk_stuck" || !shown.has(`${process.pid}:${each.job}`));
  const told = state.processes.flatMap((process) => news(process).map((each) => ({ ...each, pid: process.pid, key: `${process.pid}:${each.job}:${each.text}` })));
  by("advice-panel").hidden = !told.length;
  advice.update(told);
  showJobs(state);
  endedTable.update(state.ended);
  helperTable.update(state.helpers);
  const workers = state.workers ?? [];
  by("workers-panel").hidden = !workers.length;
  workerTable.update(workers);
  setText(by("workers-note"), state.left_out_workers ? `${state.left_out_workers} more are not listed` : "");
  setText(by("helpers-note"), state.left_out_helpers ? `${state.left_out_helpers} more are not listed` : "");
  const undoing = new Set(state.jobs.filter((job) => job.phase === "undoing").map((job) => job.key));
  const loans = new Set(state.jobs.filter((job) => job.loan !== null && job.threads === 1).map((job) => job.key));
  for (const each of state.helpers) {
    each.undoing = undoing.has(`${each.pid}:${each.job}`);
    each.lent = loans.has(`${each.pid}:${each.job}`);
  }
  timeline.update(state);
  if (detailed) patchDetails();
  if (asked) patchCancel();
}

function showJobs(state) {
  const words = by("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = words.length ? state.jobs.filter((job) => {
    const text = `${job.name} ${job.labels.join(" ")} ${job.pid} ${job.phase} ${stateOf(job)}`.toLowerCase();
    return words.every((word) => text.includes(word));
  }) : state.jobs;
  jobTable.update(found);
  const notes = [];
  if (words.length) notes.push(`${found.length} found`);
  if (state.under_way > state.jobs.length) notes.push(`${state.jobs.length} of ${state.under_way} listed`);
  setText(by("jobs-note"), notes.join(", "));
}

function showNotice(text) {
  by("notice").hidden = !text;
  setText(by("notice"), text);
}

function connection(state, text) {
  by("connection").dataset.state = state;
  setText(by("connection-text"), text);
}

let missed = [];
let pausedAt = "";

function take(state) {
  latest = state;
  if (paused) {
    missed.push(...(state.marks ?? []));
    if (missed.length > MOST_MARKS) missed.splice(0, missed.length - MOST_MARKS);
    if (by("view").hidden) show(state); // it was logged out meanwhile
    connection("paused", pausedAt);
    return;
  }
  timeline.add(state.marks ?? []);
  connection("live", "Live");
  show(state);
}

by("pause").addEventListener("click", () => {
  paused = !paused;
  setAttribute(by("pause"), "aria-pressed", paused);
  if (paused) {
    pausedAt = `Paused at ${latest ? latest.at : "the start"}`;
    connection("paused", pausedAt);
  } else if (latest) {
    take({ ...latest, marks: missed });
    missed = [];
  }
});
by("filter").addEventListener("input", () => latest && jobTable && showJobs(latest));
timeline.changed = () => {
  setAttribute(by("hold"), "aria-pressed", !timeline.live);
};
by("earlier").addEventListener("click", () => timeline.move(-0.5));
by("later").addEventListener("click", () => timeline.move(0.5));
by("zoom-in").addEventListener("click", () => timeline.zoom(-1));
by("zoom-out").addEventListener("click", () => timeline.zoom(1));
by("hold").addEventListener("click", () => timeline.hold(timeline.live));

// Changes.

const jobOf = (key) => latest && (latest.jobs.find((job) => job.key === key) || latest.ended.find((job) => job.key === key));

async function change(what, body) {
  let response;
  try {
    response = await fetch(what, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    if (!response.ok) return await whyRefused(response);
  } catch {
    return "The server does not answer.";
  }
  try {
    const told = await response.json();
    return told.done ? "" : String(told.text);
  } catch {
    return "The answer is not this page's: load the page again.";
  }
}

// In words: a proxy's page is none.
async function whyRefused(response) {
  const kind = response.headers.get("Content-Type") ?? "";
  const text = kind.startsWith("text/plain") ? (await response.text()).trim() : "";
  return text || `The server answers with status ${response.status}.`;
}

// Opens a dialog and does what it asks; it stays open with the reason where that failed.
let opened = 0;

function open(dialog, act) {
  const mine = ++opened;
  const error = dialog.querySelector(".dialog-error");
  if (error) setText(error, "");
  for (const each of dialog.querySelectorAll("button")) each.disabled = false;
  dialog.querySelector("form").onsubmit = async (event) => {
    if (!act || event.submitter?.value !== "yes") return;
    event.preventDefault();
    event.submitter.disabled = true;
    const problem = await act();
    if (mine !== opened || !dialog.open) return; // something else is asked by now
    event.submitter.disabled = false;
    if (problem) setText(error, problem);
    else dialog.close();
  };
  dialog.showModal();
}

let asked = null;

function askCancel(key) {
  const job = jobOf(key);
  if (!job) return;
  asked = key;
  patchCancel();
  open(by("cancel-dialog"), () => change("cancel", { pid: job.pid, job: job.number }));
}

function patchCancel() {
  const job = jobOf(asked);
  if (!job) return;
  const over = job.ended === undefined ? "" : ` It is over: ${job.phase}.`;
  setText(by("cancel-text"), `${job.name}, ${job.kind} ${job.number} of process ${job.pid}: ${unitsOf(job)}.${over}`);
}
by("cancel-dialog").addEventListener("close", () => (asked = null));

function askRenice(key) {
  const job = jobOf(key);
  if (!job) return;
  setText(by("renice-text"), `${job.name}, ${job.kind} ${job.number} of process ${job.pid}.`);
  by("nice").value = job.nice;
  open(by("renice-dialog"), () => change("renice", { pid: job.pid, job: job.number, nice: by("nice").valueAsNumber }));
  by("nice").select();
}

// No button of the form: Enter in the field would press the first of those.
for (const each of document.querySelectorAll("dialog .leave")) {
  each.addEventListener("click", () => each.closest("dialog").close());
}

let detailed = null;
const detailRows = new Map();

function showDetails(key) {
  detailed = key;
  detailRows.clear();
  by("details").replaceChildren();
  patchDetails();
  open(by("details-dialog"));
}

function patchDetails() {
  const job = jobOf(detailed);
  if (!job) {
    const state = detailed === null ? null : detailRows.get("state");
    if (state) setText(state, "not told of any more");
    return;
  }
  setText(by("details-title"), job.name);
  const facts = {
    process: job.pid, kind: `${job.kind} ${job.number}`, labels: job.labels.join(", ") || "none", state: job.stuck ? `${job.phase}, stuck for ${job.stuck}` : stateOf(job),
    progress: [job.percent, unitsOf(job), progressOf(job)].filter(Boolean).join(", "), rate: job.rate || "–", threads: job.threads,
    nice: job.loan === null ? job.nice : `${job.nice}, ${lent(job)}`, began: job.begun ? `after ${job.queued}` : job.ended === undefined ? `not yet, for ${job.queued}` : "never", "since then": job.begun ? job.elapsed : "–",
    "waits for": job.waits_for || "nothing", error: errorOf(job) || "none",
  };
  const workers = (latest.workers ?? []).filter((each) => each.pid === job.pid && each.job === job.number);
  if (workers.length) facts.workers = workers.map((each) => `${each.name}: ${each.state}, ${each.units} done${each.rate ? `, ${each.rate}` : ""}${each.why ? `, ${each.why}` : ""}`).join("; ");
  for (const [name, text] of Object.entries(facts)) {
    let node = detailRows.get(name);
    if (!node) {
      detailRows.set(name, (node = element("dd")));
      by("details").append(element("dt", { text: name }), node);
    }
    setText(node, text);
  }
}
by("details-dialog").addEventListener("close", () => (detailed = null));

// Access.

by("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  let response;
  try {
    response = await fetch("login", { method: "POST", body: new URLSearchParams({ token: by("token").value }) });
  } catch {
    setText(by("login-error"), "The server does not answer.");
    return;
  }
  if (response.ok) {
    by("token").value = "";
    setText(by("login-error"), "");
    by("login").hidden = true;
    begin();
  } else {
    setText(by("login-error"), await whyRefused(response));
    by("token").select();
  }
});

by("logout").addEventListener("click", async () => {
  try {
    await fetch("logout", { method: "POST" });
  } finally {
    stream.say("left");
    location.reload();
  }
});

function setAccess(found) {
  if (found !== access) {
    access = found;
    jobTable = null;
  }
}

function refused(status, text) {
  stop();
  by("view").hidden = true;
  setText(by("summary"), "");
  by("logout").hidden = true;
  connection("lost", "Not logged in");
  if (status === 401) {
    by("login").hidden = false;
    by("token").focus();
  } else {
    showNotice(text);
  }
}

// What comes from the server.

let heard = 0;
let polling = 0;
let watching = 0;

const stream = new Stream((kind, data) => {
  if (kind === "broken") {
    poll();
  } else if (kind === "left") {
    begin(); // who looks has changed: the server says what may be seen now
  } else if (kind === "end") {
    if (data === "stop") connection("lost", "The server stops");
  } else if (kind === "marks") {
    missed = [];
    timeline.replace(JSON.parse(data));
  } else {
    if (kind === "hello") {
      setAccess(JSON.parse(data).access);
      by("logout").hidden = false;
    } else {
      heard = performance.now();
      clearTimeout(polling);
      polling = 0;
      take(JSON.parse(data));
    }
  }
}, () => [...timeline.all(), ...missed]);

function stop() {
  stream.close();
  clearTimeout(polling);
  polling = 0;
  clearInterval(watching);
  watching = 0;
}

function begin() {
  stop();
  if (document.hidden) return;
  heard = performance.now();
  stream.open();
  watching = setInterval(() => {
    if (!polling && performance.now() - heard > SILENT_MS) poll();
  }, 1000);
}

// Asks, while the stream brings nothing; also how it is found out why.
async function poll(since = performance.now()) {
  polling = -1;
  let response = null;
  let told = null;
  try {
    response = await fetch("state");
    if (response.ok) told = await response.json();
  } catch {
    response = null;
  }
  if (polling === 0 || document.hidden) return; // the stream is back
  if (response?.status === 401 || response?.status === 403) {
    refused(response.status, await whyRefused(response));
    return;
  }
  if (told) {
    setAccess(told.access);
    by("logout").hidden = false;
    timeline.replace(told.marks);
    take(told.state);
  } else {
    connection("lost", "The server does not answer; trying again");
  }
  if (performance.now() - since > AGAIN_MS) begin();
  else if (told && stream.broken) polling = setTimeout(begin, POLL_MS);
  else polling = setTimeout(() => poll(since), POLL_MS);
}

document.addEventListener("visibilitychange", () => (document.hidden ? stop() : begin()));
begin();
