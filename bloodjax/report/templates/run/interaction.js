// Sorting of tables, filters of galleries, and the images of a chosen cell. The page works without it.
"use strict";
document.documentElement.classList.add("js");

// Tables: a click on a column's head sorts by it, another one the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("num");
      const usual = numeric ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") !== usual ? usual : numeric ? "ascending" : "descending";
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => {
        const cell = row.cells[column];
        return numeric ? parseFloat(cell.dataset.value) : cell.textContent.trim();
      };
      const rows = [...body.rows].map((row) => [value(row), row]);
      rows.sort(([a], [b]) => {
        if (!numeric) return sign * a.localeCompare(b);
        // Cells without a number are last in either order.
        if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
        return sign * (a - b);
      });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// Galleries: two lists of classes and a field for a part of the name.
for (const gallery of document.querySelectorAll("[data-filter]")) {
  const figures = [...gallery.children];
  const tools = document.createElement("div");
  tools.className = "tools";
  const count = document.createElement("span");
  count.className = "soft";
  count.setAttribute("role", "status");
  const chosen = {};
  const apply = () => {
    for (const figure of figures) {
      const classes = ["label", "predicted"].every((key) => !chosen[key] || figure.dataset[key] === chosen[key]);
      const name = figure.querySelector("[title]").title.toLowerCase();
      figure.hidden = !classes || !name.includes((chosen.name || "").toLowerCase());
    }
    count.textContent = `${figures.filter((figure) => !figure.hidden).length} of ${figures.length} shown`;
  };
  const field = (element, key, text) => {
    const label = document.createElement("label");
    label.append(`${text} `, element);
    element.addEventListener("input", () => { chosen[key] = element.value; apply(); });
    tools.append(label);
  };
  const texts = { label: "Label", predicted: gallery.dataset.filter === "labels" ? "Suggested" : "Predicted" };
  for (const key of ["label", "predicted"]) {
    const select = document.createElement("select");
    select.add(new Option("all", ""));
    for (const name of [...new Set(figures.map((figure) => figure.dataset[key]))].sort()) {
      select.add(new Option(name, name));
    }
    field(select, key, texts[key]);
  }
  const search = document.createElement("input");
  search.type = "search";
  field(search, "name", "Name");
  tools.append(count);
  gallery.before(tools);
  apply();
}

// Confusion matrix: shows the images of the cell that the address names.
function choose() {
  const cell = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!cell || !cell.classList.contains("cell")) return;
  document.querySelectorAll(".cell.chosen, td.chosen").forEach((old) => old.classList.remove("chosen"));
  cell.classList.add("chosen");
  document.querySelector(`a[href="#${cell.id}"]`).closest("td").classList.add("chosen");
  cell.scrollIntoView({ block: "nearest" });
}
addEventListener("hashchange", choose);
choose();
