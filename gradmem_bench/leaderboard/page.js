"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);

  // ------------------------------------------------------------------------------------------- theme

  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const say = () => { button.textContent = theme() === "dark" ? "Light" : "Dark"; };
  // A page from the file system may be denied its storage.
  const kept = (value) => {
    try { return value ? localStorage.setItem("theme", value) : localStorage.getItem("theme"); } catch { return null; }
  };
  if (["light", "dark"].includes(kept())) root.dataset.theme = kept();
  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    kept(root.dataset.theme);
    say();
  });
  dark.addEventListener("change", say);
  button.hidden = false;
  say();

  // ------------------------------------------------------------------------------------------- sorting

  const sortBy = (heading) => {
    const number = heading.dataset.sort !== "text";
    // The best score, the least cost, the first name.
    const first = heading.dataset.sort === "score" ? "descending" : "ascending";
    const now = heading.getAttribute("aria-sort");
    const order = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
    all("th", heading.parentNode).forEach((other) => other.dataset.sort && other.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", order);
    const column = heading.cellIndex;
    const body = heading.closest("table").tBodies[0];
    const rows = all("tr:not(.more)", body).map((row) => {
      const text = row.cells[column].dataset.value ?? "";
      return { row, more: row.nextElementSibling, key: number && text !== "" ? Number(text) : text };
    });
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "");
      return sign * (number ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true }));
    });
    for (const { row, more } of rows) {
      body.append(row);
      if (more?.classList.contains("more")) body.append(more);
    }
  };
  all("th[data-sort]").forEach((heading) => {
    const name = one(".name", heading);
    const control = document.createElement("button");
    control.type = "button";
    control.textContent = name.textContent;
    name.replaceWith(control);
    heading.setAttribute("aria-sort", "none");
    control.addEventListener("click", () => sortBy(heading));
  });

  // ------------------------------------------------------------------------------------------- folds

  const unfold = (row, open) => {
    one(".open button", row).setAttribute("aria-expanded", open);
    document.getElementById(`${row.id}-more`).hidden = !open || row.hidden;
  };
  const isOpen = (row) => one(".open button", row).getAttribute("aria-expanded") === "true";
  all("tr.run").forEach((row) => {
    unfold(row, false);
    one(".open button", row).addEventListener("click", () => unfold(row, !isOpen(row)));
  });
  all(".copy").forEach((copy) => {
    if (!navigator.clipboard) return;
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(copy.previousElementSibling.textContent);
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
  });
  const reveal = (id) => {
    const row = document.getElementById(id);
    all("tr.shown").forEach((other) => other.classList.remove("shown"));
    row.classList.add("shown");
    unfold(row, true);
    row.scrollIntoView({ block: "center" });
    one(".open button", row).focus({ preventScroll: true });
  };

  // ------------------------------------------------------------------------------------------- cut columns

  const measure = new ResizeObserver((entries) => {
    for (const { target } of entries) target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth;
  });
  all(".scroll").forEach((place) => measure.observe(place));

  // ------------------------------------------------------------------------------------------- filters

  const form = document.getElementById("filters");
  form.hidden = false;
  const drawAll = () => {
    for (const table of chart.data.tables) {
      const figure = one(`[data-chart="${table.id}"]`);
      if (figure.parentNode.hidden) continue;
      chart.draw(figure, table, form.elements.axis.value, form.elements.any_k.checked, reveal);
    }
  };
  const apply = () => {
    const chosen = (name) => form.elements[name].value;
    const wanted = chosen("method").trim().toLowerCase();
    const counts = { shown: 0, dimmed: 0 };
    // What others published has no backbone or budget to choose by.
    const differs = (row, name) => chosen(name) && row.dataset[name] && row.dataset[name] !== chosen(name);
    for (const row of all("tr[data-task]")) {
      const away = differs(row, "task") || differs(row, "backbone");
      const other = differs(row, "budget") || !row.dataset.method.toLowerCase().includes(wanted);
      // A score means nothing without floor and ceiling.
      const reference = row.matches(".floor, .ceiling, .group .paper tr");
      row.hidden = Boolean(away || (other && !reference));
      row.classList.toggle("dimmed", Boolean(other && reference));
      if (row.classList.contains("run")) unfold(row, isOpen(row));
    }
    const live = (place, kind = "") => one(`tr${kind}[data-task]:not([hidden], .dimmed)`, place) !== null;
    for (const section of all("section.group")) {
      section.hidden = !live(section, ".run");
      if (section.hidden) continue;
      counts.shown += all("tr.run:not([hidden], .dimmed)", section).length;
      counts.dimmed += all("tr.run.dimmed", section).length;
    }
    all("tbody.paper").forEach((body) => { body.hidden = one("tr[data-task]:not([hidden])", body) === null; });
    all("[data-figure]").forEach((figure) => { figure.hidden = !live(figure); });
    all("section.published").forEach((section) => { section.hidden = !live(section); });
    const of = `${counts.shown} of ${all("tr.run").length} rows`;
    const beside = counts.dimmed ? `, with ${counts.dimmed} of floor and ceiling, dimmed` : "";
    form.elements.namedItem("count").textContent = of + beside;
    chart.hideTip();
    drawAll();
  };
  form.addEventListener("change", apply);
  form.elements.method.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  // The form has its values back only after the event.
  form.addEventListener("reset", () => setTimeout(apply));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    chart.hideTip();
    drawAll();
  });
  apply();
  if (/^#row-[\d-]+$/.test(location.hash) && one(location.hash)) reveal(location.hash.slice(1));
})();
