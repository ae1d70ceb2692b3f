// The page: sends images to the server in batches and shows the answers.
// Names and classes come from elsewhere, so they are only ever set as text, never as markup.
"use strict";

const BATCH = 16; // images of a request
const IN_FLIGHT = 2; // requests at once, so that the server decodes while it computes
const TRIES = 4; // of a request that the server had no time for
const SUFFIXES = /\.(bmp|dib|gif|j2k|jfif|jp2|jpe|jpe?g|pbm|pgm|png|pnm|ppm|tiff?|webp)$/i;

const $ = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const small = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 2 });
const count = new Intl.NumberFormat("en");

let model = null; // what api/model says
let items = []; // {id, file, name, result, url, row}, one for each image
let selected = null;
let sending = null; // AbortController of what is being sent
let pasted = 0;
let nextId = 0;
let looking = null; // AbortController of what the detail view asks for

function make(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}

function counted(n, singular, plural) {
  return `${count.format(n)} ${n === 1 ? singular : plural || `${singular}s`}`;
}

// A share that is not 1 is not shown as 100 %, and one that is not 0 not as 0 %.
function share(value) {
  if (value < 1 && value > 0.9995) return "> 99.9%";
  if (value > 0 && value < 0.0005) return "< 0.1%";
  return percent.format(value);
}

function say(text) {
  $("status").textContent = text;
}

// ---------------------------------------------------------------- choosing images

function suffixed(name) {
  return SUFFIXES.test(name);
}

async function filesOf(entry, path, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
    if (file) found.push([file, path + entry.name, path !== ""]);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)).catch(() => []);
    if (!some.length) return;
    for (const inner of some) await filesOf(inner, `${path}${entry.name}/`, found);
  }
}

async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return add([...transfer.files].map((file) => [file, file.name, false]));
  const found = [];
  for (const entry of entries) await filesOf(entry, "", found);
  add(found);
}

// Takes [file, name, whether it is from a folder]. Of a folder, files that are no images are left out.
function add(found) {
  const taken = found.filter(([, name, inFolder]) => !inFolder || suffixed(name));
  const left = found.length - taken.length;
  taken.sort((a, b) => a[1].localeCompare(b[1], "en", { numeric: true }));
  const fresh = taken.map(([file, name]) => ({ id: nextId++, file, name, result: null, url: null, row: null }));
  if (left) say(`${counted(left, "other file")} left out`);
  if (!fresh.length) {
    if (found.length) say("No images in this folder");
    return;
  }
  if (!items.length) $("about").open = false;
  items.push(...fresh);
  for (const item of fresh) $("list").append(rowOf(item));
  showWork();
  // On a phone the image covers the list.
  if (narrow() && fresh.length > 1) $("work").classList.remove("open");
  else select(fresh[0], fresh.length === 1);
  send();
}

// ---------------------------------------------------------------- sending them

function batches(waiting) {
  const found = [];
  let batch = [];
  let bytes = 0;
  const most = Math.min(BATCH, model.limits.files);
  for (const item of waiting) {
    if (item.file.size > model.limits.file_bytes) {
      settle(item, failed(item, `larger than the limit of ${model.limits.file_bytes / 1e6} MB`));
      continue;
    }
    if (batch.length && (batch.length === most || bytes + item.file.size > model.limits.request_bytes / 4)) {
      found.push(batch);
      batch = [];
      bytes = 0;
    }
    batch.push(item);
    bytes += item.file.size;
  }
  if (batch.length) found.push(batch);
  return found;
}

function failed(item, error) {
  return { name: item.name, predicted: null, confidence: null, refer: true, why: "", probabilities: null, set: null, notes: [], error };
}

async function post(path, files, signal) {
  const form = new FormData();
  for (const [file, name] of files) form.append("files", file, name);
  for (let tried = 1; ; tried++) {
    const response = await fetch(path, { method: "POST", body: form, signal });
    if (response.ok) return response;
    if (response.status === 503 && tried < TRIES) {
      await new Promise((resolve) => setTimeout(resolve, 500 * tried));
      continue;
    }
    const detail = await response.json().then((body) => body.detail, () => response.statusText);
    throw new Error(detail);
  }
}

async function answer(batch, signal) {
  try {
    const response = await post("api/predict", batch.map((item) => [item.file, item.name]), signal);
    const { results } = await response.json();
    batch.forEach((item, i) => settle(item, { ...results[i], name: item.name }));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const why = error instanceof TypeError ? "the server does not answer, or the file has changed" : error.message;
    batch.forEach((item) => settle(item, failed(item, why)));
  }
}

async function send() {
  if (sending || !model) return;
  sending = new AbortController();
  const { signal } = sending;
  const started = performance.now();
  let done = 0;
  const update = () => {
    const open = items.filter((item) => !item.result).length;
    const all = done + open;
    $("bar").value = all ? done / all : 1;
    const seconds = (performance.now() - started) / 1000;
    const left = done >= BATCH && seconds > 2 ? Math.ceil((seconds / done) * open) : null;
    const first = !done && !model.ready ? "; the first answer takes longer" : "";
    $("progress-text").textContent =
      `${count.format(done)} of ${counted(all, "image")}${left ? `, about ${left} s left` : first}`;
    return open;
  };
  $("progress").hidden = false;
  try {
    while (update()) {
      const queue = batches(items.filter((item) => !item.result));
      const work = async () => {
        for (let batch = queue.shift(); batch; batch = queue.shift()) {
          await answer(batch, signal);
          done += batch.length;
          update();
        }
      };
      await Promise.all(Array.from({ length: IN_FLIGHT }, work));
    }
    finished();
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    const dropped = items.filter((item) => !item.result);
    remove(dropped);
    say(`Cancelled; ${counted(items.length, "image")} answered`);
  } finally {
    sending = null;
    $("progress").hidden = true;
    showWork();
    if (items.some((item) => !item.result)) send();
    else if (!model.ready) refresh();
  }
}

function finished() {
  const referred = items.filter((item) => item.result.refer && !item.result.error).length;
  const unread = items.filter((item) => item.result.error).length;
  say(`${counted(items.length, "image")} answered, ${referred} to refer, ${unread} not read`);
}

function settle(item, result) {
  item.result = result;
  fill(item);
  if (item === selected) detail(item);
}

function remove(gone) {
  const ids = new Set(gone.map((item) => item.id));
  for (const item of gone) {
    item.row.remove();
    if (item.url) URL.revokeObjectURL(item.url);
  }
  items = items.filter((item) => !ids.has(item.id));
  if (selected && ids.has(selected.id)) close();
}

// ---------------------------------------------------------------- the list

function urlOf(item) {
  item.url ||= URL.createObjectURL(item.file);
  return item.url;
}

// Shows a file; one of a format that the browser does not know, as the server reads it.
function showFile(image, item) {
  const inner = item; // the image element may show another item by then
  image.onerror = async () => {
    image.onerror = null;
    if (!inner.result || inner.result.error) return blank(image);
    try {
      const blob = await (await post("api/preview", [[inner.file, inner.name]])).blob();
      URL.revokeObjectURL(inner.url);
      inner.url = URL.createObjectURL(blob);
      if (image.dataset.of === String(inner.id)) image.src = inner.url;
    } catch {
      blank(image);
    }
  };
  image.dataset.of = item.id;
  image.hidden = false;
  image.src = urlOf(item);
}

function blank(image) {
  image.hidden = true;
  if (image.parentElement.classList.contains("row")) image.before(make("span", "", "none"));
}

function rowOf(item) {
  const line = make("li");
  const button = make("button", undefined, "row");
  button.type = "button";
  button.addEventListener("click", () => select(item, true));
  line.append(button);
  item.row = line;
  button.append(make("span", "", "none"), make("b", "…"), make("span", "", "share"), make("span", item.name, "name"));
  return line;
}

function fill(item) {
  const { result } = item;
  const button = item.row.firstChild;
  const image = make("img");
  image.alt = "";
  image.loading = "lazy";
  const name = make("span", item.name, "name");
  name.title = item.name;
  button.replaceChildren(image, make("b", result.error ? "Not read" : result.predicted));
  button.append(make("span", result.error ? "" : share(result.confidence), "share"), name);
  if (result.error) button.append(make("span", "error", "tag bad"));
  else if (result.refer) button.append(make("span", "refer", "tag refer"));
  showFile(image, item);
}

function kinds() {
  const answered = items.filter((item) => item.result);
  const found = [
    ["all", "all", () => true],
    ["refer", "to refer", (item) => item.result?.refer && !item.result.error],
    ["kept", "not to refer", (item) => item.result?.refer === false],
    ["error", "not read", (item) => Boolean(item.result?.error)],
  ];
  model.classes.forEach((name, i) => found.push([`class-${i}`, name, (item) => item.result?.predicted === name]));
  return found
    .map(([key, label, test]) => ({ key, label, test, n: key === "all" ? items.length : answered.filter(test).length }))
    .filter((kind) => kind.n || kind.key === "all");
}

function showWork() {
  $("work").hidden = !items.length;
  $("work").classList.toggle("several", items.length > 1);
  $("drop").classList.toggle("first", !items.length);
  $("csv").disabled = Boolean(sending) || !items.some((item) => item.result);
  $("results-title").textContent = counted(items.length, "image");
  tally();
  const found = kinds();
  const shown = found.find((kind) => kind.key === $("show").value) || found[0];
  $("show").replaceChildren(
    ...found.map((kind) => {
      const option = make("option", `${kind.label} (${count.format(kind.n)})`);
      option.value = kind.key;
      option.selected = kind === shown;
      return option;
    }),
  );
  arrange(shown);
}

function tally() {
  const found = { answered: 0, kept: 0, refer: 0, bad: 0, waiting: 0 };
  for (const { result } of items) {
    if (!result || result.error) found[result ? "bad" : "waiting"]++;
    else found[result.refer === null ? "answered" : result.refer ? "refer" : "kept"]++; // null: the run has no rule
  }
  const words = { answered: "answered", kept: "not to refer", refer: "to refer", bad: "not read", waiting: "waiting" };
  const shown = Object.keys(found).filter((kind) => found[kind]);
  $("tally").replaceChildren(...shown.map((kind) => make("span", `${count.format(found[kind])} ${words[kind]}`, kind)));
}

function arrange(shown) {
  const order = $("order").value;
  const sorted = [...items];
  const certainty = (item) => (item.result?.error ? -1 : item.result?.confidence ?? 2);
  if (order === "doubtful") sorted.sort((a, b) => certainty(a) - certainty(b));
  if (order === "name") sorted.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  $("list").replaceChildren(...sorted.map((item) => item.row));
  let visible = 0;
  for (const item of items) {
    item.row.hidden = !shown.test(item);
    visible += !item.row.hidden;
  }
  $("nothing").hidden = visible > 0;
}

// ---------------------------------------------------------------- one image

function narrow() {
  return matchMedia("(max-width: 56rem)").matches && items.length > 1;
}

function select(item, byHand) {
  if (selected) selected.row.firstChild.removeAttribute("aria-current");
  selected = item;
  item.row.firstChild.setAttribute("aria-current", "true");
  $("work").classList.toggle("open", byHand);
  detail(item);
  if (byHand && narrow()) $("detail-name").focus();
}

function close() {
  const row = selected?.row.firstChild;
  $("work").classList.remove("open");
  if (row?.isConnected) row.focus();
  if (!narrow()) {
    selected = null;
    $("detail").hidden = true;
    if (items.length) select(items[0], false);
  }
}

function detail(item) {
  looking?.abort();
  looking = new AbortController();
  const { result } = item;
  $("detail").hidden = false;
  $("detail-name").textContent = item.name;
  const picture = $("picture");
  picture.alt = `The image ${item.name}`;
  showFile(picture, item);
  $("heat").hidden = true;
  $("heat-toggle").setAttribute("aria-pressed", "false");
  $("heat-class-label").hidden = true;
  $("caption").textContent = result?.notes.join("; ") || "";
  const answered = Boolean(result && !result.error);
  $("heat-tools").hidden = !answered;
  $("nearest").hidden = !answered;
  verdict(result);
  bars(answered ? result.probabilities : {});
  if (!answered) return;
  $("heat-class").replaceChildren(
    ...Object.keys(result.probabilities).map((name) => {
      const option = make("option", name);
      option.value = name;
      option.selected = name === result.predicted;
      return option;
    }),
  );
  nearest(item, looking.signal);
}

function verdict(result) {
  const place = $("verdict");
  place.replaceChildren();
  const box = (kind, title, text) => {
    const element = make("div", undefined, `word ${kind}`);
    element.append(make("b", title));
    if (text) element.append(make("p", text));
    place.append(element);
  };
  if (!result) return place.append(make("p", "Waiting for the answer …", "soft"));
  if (result.error) return box("bad", "This file was not read", result.error);
  place.append(make("p", result.predicted, "class"));
  place.append(make("p", `probability ${share(result.confidence)}`, "share"));
  if (result.set) place.append(make("p", `conformal set: ${result.set.join(", ") || "empty"}`, "share"));
  if (!result.refer) {
    const rules = model.refers_unsure || model.refers_unlike;
    if (rules) box("good", "No need to refer", "");
    else box("plain", "No rule when to refer", "");
    return;
  }
  const reasons = [];
  if (result.why.includes("unsure")) reasons.push("The classifier is unsure of the class.");
  if (result.why.includes("unlike")) {
    reasons.push("The image is unlike the cells that the classifier was trained on, so the class may mean nothing.");
  }
  box("refer", `Refer: ${result.why}`, reasons.join(" "));
}

function bars(probabilities) {
  const table = make("table", undefined, "bars");
  const caption = make("caption", "Probability of each class", "hidden-text");
  table.append(caption);
  const rows = Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
  rows.forEach(([name, value], i) => {
    const row = table.insertRow();
    if (!i) row.className = "top";
    const head = make("th", name);
    head.scope = "row";
    const cell = make("td");
    cell.setAttribute("aria-hidden", "true");
    const track = make("span", undefined, "track");
    const fill = make("span", undefined, "fill");
    fill.style.width = `${100 * value}%`;
    track.append(fill);
    cell.append(track);
    row.append(head, cell, make("td", share(value), "number"));
  });
  $("probabilities").replaceChildren(...(rows.length ? [table] : []));
}

async function heat() {
  const item = selected;
  const on = $("heat-toggle").getAttribute("aria-pressed") === "true";
  $("heat-class-label").hidden = !on;
  if (!on) {
    $("heat").hidden = true;
    $("caption").textContent = item.result.notes.join("; ");
    return;
  }
  const name = $("heat-class").value;
  $("caption").textContent = "Computing …";
  try {
    const path = `api/explain?${new URLSearchParams({ class_name: name })}`;
    const blob = await (await post(path, [[item.file, item.name]], looking.signal)).blob();
    if (item !== selected || $("heat-class").value !== name) return;
    URL.revokeObjectURL($("heat").src);
    $("heat").src = URL.createObjectURL(blob);
    $("heat").alt = `Heat map for ${name}`;
    $("heat").hidden = false;
    $("caption").textContent = `What speaks for ${name}: most where it is yellow, nothing where the image is unchanged.`;
  } catch (error) {
    if (error.name !== "AbortError" && item === selected) $("caption").textContent = error.message;
  }
}

async function nearest(item, signal) {
  const text = $("nearest-text");
  const cells = $("nearest-cells");
  cells.replaceChildren();
  if (model.nearest.state === "none") {
    text.textContent = model.nearest.note;
    return;
  }
  text.textContent = "Searching …";
  try {
    for (;;) {
      const found = await (await post("api/nearest", [[item.file, item.name]], signal)).json();
      if (item !== selected) return;
      if (found.state !== "preparing") return showNearest(item, found);
      text.textContent = `The training cells are being prepared. ${found.note}`;
      await new Promise((resolve) => setTimeout(resolve, 1500));
      if (signal.aborted) return;
    }
  } catch (error) {
    if (error.name !== "AbortError" && item === selected) text.textContent = error.message;
  }
}

function showNearest(item, found) {
  const same = found.cells.filter((cell) => cell.label === item.result.predicted).length;
  const parts = [];
  if (found.cells.length) parts.push(`${same} of the ${found.cells.length} nearest are ${item.result.predicted}.`);
  if (found.note) parts.push(found.note);
  $("nearest-text").textContent = parts.join(" ");
  $("nearest-cells").replaceChildren(
    ...found.cells.map((cell) => {
      const line = make("li", undefined, cell.label === item.result.predicted ? "" : "other");
      if (cell.picture) {
        const image = make("img");
        image.alt = `Training cell: ${cell.label}`;
        image.src = cell.picture;
        line.append(image);
      } else {
        line.append(make("span", "", "none"));
      }
      line.append(make("b", cell.label), make("span", `similarity ${cell.similarity.toFixed(2)}`));
      line.title = cell.name;
      return line;
    }),
  );
}

// ---------------------------------------------------------------- the table

function field(value) {
  let text = String(value);
  // A spreadsheet would take such a name for a formula.
  if (/^[=+@\t\r-]/.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv() {
  const sets = items.some((item) => item.result?.set); // conformal sets, where the run has them
  const lines = [["name", "predicted", "confidence", "refer", "why", ...(sets ? ["set"] : []), ...model.columns]];
  for (const { name, result } of items) {
    if (!result) continue;
    const numbers = result.error ? model.classes.map(() => "") : model.classes.map((c) => result.probabilities[c].toFixed(6));
    const confidence = result.error ? "" : result.confidence.toFixed(6);
    const why = result.error ? `not read: ${result.error}` : result.why;
    const set = sets ? [(result.set || []).join(";")] : [];
    const refer = result.refer === null ? "" : Number(result.refer);
    lines.push([name, result.predicted ?? "", confidence, refer, why, ...set, ...numbers]);
  }
  return lines.map((line) => line.map(field).join(",") + "\n").join("");
}

function download() {
  const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  const link = make("a");
  link.href = url;
  link.download = "predictions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// ---------------------------------------------------------------- the classifier

function interval(name, figures) {
  const value = percent.format(figures[name]);
  const bounds = figures.ci95?.[name];
  return bounds ? `${value} (95% interval ${percent.format(bounds[0])} to ${percent.format(bounds[1])})` : value;
}

function describe() {
  const { runs, metrics: figures, classes } = model;
  const title = runs.length > 1 ? `Ensemble of ${runs.length} runs` : runs[0].name;
  $("model").textContent = title;
  document.title = `${title} – bloodjax`;
  const parts = [`${runs[0].network} for ${counted(classes.length, "class", "classes")} of cells.`];
  if (runs.length > 1) parts[0] = `${runs.map((run) => run.network).join(", ")} for ${counted(classes.length, "class", "classes")} of cells.`;
  if (figures.accuracy !== undefined) {
    parts.push(`On the ${counted(figures.n, "test cell")} of its run, ${interval("accuracy", figures)} are right.`);
  }
  const point = figures.operating_point;
  if (model.refers_unsure && point && point.error !== null) {
    parts.push(`It refers ${small.format(1 - point.coverage)} of them; of the rest, ${small.format(point.error)} are wrong.`);
  }
  $("summary").textContent = parts.join(" ");
  const remarks = [];
  if (!model.refers_unsure && !model.refers_unlike) {
    remarks.push("This run has no rule when to refer a cell to a person; bloodjax evaluate --calibrate adds one.");
  }
  if (model.answers_nothing) {
    remarks.push("No threshold of confidence reached the error that this run aims at, so every image is referred.");
  }
  $("remarks").replaceChildren(...remarks.map((text) => make("p", text, "note")));
  facts();
}

function facts() {
  const { runs, metrics: figures, limits } = model;
  const rows = [["Classes", model.classes.join(", ")]];
  rows.push(["Network", runs.map((run) => `${run.network}, ${run.image_size} pixels`).join("; ")]);
  rows.push(["Test-time views", model.views]);
  rows.push(["Calibration", runs.map((run) => run.calibration?.method ?? "none").join("; ")]);
  if (figures.ece !== undefined) rows.push(["Calibration error", `${small.format(figures.ece)} on its test cells`]);
  if (figures.balanced_accuracy !== undefined) rows.push(["Balanced accuracy", interval("balanced_accuracy", figures)]);
  for (const { weights } of runs) {
    if (weights.licence) rows.push(["Pretrained weights", `licence ${weights.licence}. ${weights.citation}`]);
  }
  rows.push(["Limits", `${limits.file_bytes / 1e6} MB and ${limits.pixels / 1e6} million pixels an image`]);
  const list = $("facts");
  list.replaceChildren();
  for (const [name, value] of rows) list.append(make("dt", name), make("dd", value));
  $("version").textContent = `bloodjax ${model.version}.`;
}

async function refresh() {
  const response = await fetch("api/model");
  if (!response.ok) throw new Error((await response.json()).detail);
  model = await response.json();
  describe();
}

async function start() {
  $("host").textContent = location.host;
  $("drop").classList.add("first");
  try {
    await refresh();
  } catch {
    $("remarks").append(make("p", "The server does not answer. Load the page again when it runs.", "note bad"));
    return;
  }
  if (items.length) send();
}

// ---------------------------------------------------------------- events

$("choose").addEventListener("click", () => $("files").click());
$("choose-folder").addEventListener("click", () => $("folder").click());
for (const input of [$("files"), $("folder")]) {
  input.addEventListener("change", () => {
    add([...input.files].map((file) => [file, file.webkitRelativePath || file.name, Boolean(file.webkitRelativePath)]));
    input.value = "";
  });
}
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  dropped(event.dataTransfer);
});
addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length) return say("The clipboard has no image");
  // A screenshot on the clipboard has the same name each time.
  add(files.map((file) => [file, file.name === "image.png" ? `pasted ${++pasted}.png` : file.name, false]));
});
$("cancel").addEventListener("click", () => sending?.abort());
$("clear").addEventListener("click", () => {
  sending?.abort();
  remove([...items]);
  showWork();
  $("choose").focus();
});
$("csv").addEventListener("click", download);
$("show").addEventListener("change", showWork);
$("order").addEventListener("change", showWork);
$("back").addEventListener("click", close);
$("heat-toggle").addEventListener("click", () => {
  const on = $("heat-toggle").getAttribute("aria-pressed") === "true";
  $("heat-toggle").setAttribute("aria-pressed", String(!on));
  heat();
});
$("heat-class").addEventListener("change", heat);
$("list").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  const rows = [...$("list").querySelectorAll("li:not([hidden]) button")];
  const next = rows[rows.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1)];
  if (!next) return;
  event.preventDefault();
  next.focus();
  if (!narrow()) next.click();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && $("work").classList.contains("open") && narrow()) close();
});

start();
