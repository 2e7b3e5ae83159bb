"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
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

  // ------------------------------------------------------------------------------------------- marks

  // A method is told by shape as well as by colour.
  const methods = [...new Set(data.tables.flatMap((table) => table.rows.map((row) => row.method)))].sort();
  const colours = ["#2583bd", "#d07a1f", "#2a9a72", "#b9609f", "#8b8a2b", "#cc5555", "#6a78d8", "#85817a"];
  const shapes = [
    "M0-6A6 6 0 1 1 0 6A6 6 0 1 1 0-6Z", "M-5.2-5.2H5.2V5.2H-5.2Z", "M0-6.5L6.5 5H-6.5Z", "M0-7.2L7.2 0L0 7.2L-7.2 0Z",
    "M0 6.5L6.5-5H-6.5Z", "M-2-6.5H2V-2H6.5V2H2V6.5H-2V2H-6.5V-2H-2Z", "M0-7L6.7-2.2L4.1 5.7H-4.1L-6.7-2.2Z",
    "M-6.5-3.2H6.5V3.2H-6.5Z",
  ];
  const colour = (method) => colours[methods.indexOf(method) % colours.length];
  const shape = (method) => shapes[methods.indexOf(method) % shapes.length];
  const svg = (name, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.append(element);
    return element;
  };
  const mark = (method, parent) => {
    const picture = svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, parent);
    picture.style.color = colour(method);
    svg("path", { d: shape(method), fill: "currentColor" }, picture);
  };
  all("[data-mark]").forEach((place) => mark(place.dataset.mark, place));

  // ------------------------------------------------------------------------------------------- sorting

  const sortBy = (heading) => {
    const number = heading.dataset.sort === "number";
    const first = number ? "descending" : "ascending";
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

  // ------------------------------------------------------------------------------------------- tooltip

  const tip = document.getElementById("tip");
  const seeds = (row) => row.runs > 1
    ? `, seeds ${row.seeds.map((one) => `${one.seed}: ${one.score?.toFixed(3) ?? "–"}`).join(", ")}` : "";
  const showTip = (point, row, metric) => {
    const interval = row.interval_text ? ` ${row.interval_text}` : "";
    tip.replaceChildren();
    const name = document.createElement("b");
    name.textContent = row.label;
    tip.append(name, `${metric} ${row.score_text}${interval}${seeds(row)}`, document.createElement("br"),
      `state ${row.bytes_text}, READ ${row.positions_text} positions (${row.kv_text} of KV)`, document.createElement("br"),
      `WRITE ${row.write_text} ms, READ ${row.read_text} ms; ${row.training_text === "–" ? "not trained" : row.training_text}`);
    tip.hidden = false;
    const box = one(".shape", point).getBoundingClientRect();
    const room = document.documentElement.clientWidth;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), room - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 10;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 4 ? above : box.bottom + 10) + scrollY}px`;
  };
  const hideTip = () => { tip.hidden = true; };
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

  // ------------------------------------------------------------------------------------------- charts

  const size = (bytes) => {
    const unit = bytes < 1024 ? 0 : bytes < 1024 ** 2 ? 1 : bytes < 1024 ** 3 ? 2 : 3;
    return `${+(bytes / 1024 ** unit).toPrecision(3)} ${["B", "KiB", "MiB", "GiB"][unit]}`;
  };
  const plain = (value) => String(+value.toPrecision(3));
  const count = (value) => {
    const power = value < 1 ? 0 : Math.min(5, Math.floor(Math.log10(value) / 3 + 1e-9));
    return `${+(value / 1000 ** power).toPrecision(3)} ${["", "k", "M", "G", "T", "P"][power]}`.trim();
  };
  const axes = {
    bytes: { name: "state bytes of a context", base: 4, text: size },
    kv: { name: "KV bytes resident while answering", base: 4, text: size },
    positions: { name: "READ positions before the query", base: 2, text: plain },
    write: { name: "WRITE, ms a context", base: 10, text: plain },
    flops: { name: "FLOPs of one WRITE", base: 10, text: count },
  };

  // The powers of the base around the values; where they are many, every second or third.
  const ticks = (values, base) => {
    const log = (value) => Math.log(value) / Math.log(base);
    const from = Math.floor(log(Math.min(...values)) + 1e-9);
    const to = Math.max(Math.ceil(log(Math.max(...values)) - 1e-9), from + 1);
    const every = Math.ceil((to - from) / 7);
    const found = [];
    for (let power = from; power < to + every; power += every) found.push(base ** power);
    return found;
  };

  const draw = (figure, table, name) => {
    const axis = axes[name];
    const scored = table.rows.filter((row) => row.score !== null && !document.getElementById(row.id).hidden);
    const rows = scored.filter((row) => row[name] !== null);
    figure.hidden = scored.length === 0;
    const plot = one(".plot", figure);
    plot.replaceChildren();
    one("figcaption", figure).replaceChildren(rows.length ? "" : `${axis.name}: not measured for these runs`);
    if (!rows.length) return;
    const width = Math.max(260, plot.clientWidth);
    const height = Math.round(Math.min(360, Math.max(230, width * 0.42)));
    const edge = { left: 40, right: 18, top: 22, bottom: 42 };
    const picture = svg("svg", {
      viewBox: `0 0 ${width} ${height}`, width, height, role: "group",
      "aria-label": `${table.metric} against ${axis.name}, ${rows.length} points`,
    }, plot);
    const positive = rows.map((row) => row[name]).filter((value) => value > 0);
    const marks = positive.length ? ticks(positive, axis.base) : [1];
    // Zero has no place on a logarithmic axis, and gets one of its own before it.
    const zero = rows.some((row) => row[name] <= 0) ? 44 : 0;
    const start = edge.left + zero + 12;
    const span = Math.log(marks[marks.length - 1] / marks[0]) || 1;
    const x = (value) => value <= 0 ? edge.left + 20
      : start + (width - edge.right - 12 - start) * (Math.log(value / marks[0]) / span);
    // A task's own metric may be any number; all others are shares.
    const ends = rows.flatMap((row) => [row.score, row.low ?? row.score, row.high ?? row.score]);
    const bottom = Math.min(0, ...rows.map((row) => row.score));
    const top = rows.every((row) => row.score <= 1) ? 1 : Math.max(...ends);
    const y = (value) => edge.top + (height - edge.top - edge.bottom) * (1 - (value - bottom) / (top - bottom));
    const text = (content, left, top, anchor = "middle") => {
      svg("text", { x: left, y: top, "text-anchor": anchor }, picture).textContent = content;
    };
    for (const value of [0, 0.25, 0.5, 0.75, 1].map((share) => bottom + share * (top - bottom))) {
      svg("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value) }, picture);
      text(plain(value), edge.left - 7, y(value) + 4, "end");
    }
    text(table.metric, 4, 11, "start");
    if (zero) text("0", x(0), height - edge.bottom + 18);
    const enough = width / marks.length < 56 ? 2 : 1;
    marks.forEach((value, index) => {
      svg("line", { class: "grid", x1: x(value), x2: x(value), y1: y(0), y2: y(0) + 5 }, picture);
      if (index % enough === 0) text(axis.text(value), x(value), height - edge.bottom + 18);
    });
    text(axis.name, (edge.left + width - edge.right) / 2, height - 4);

    const ordered = [...rows].sort((a, b) => a[name] - b[name] || b.score - a.score);
    let best = -Infinity;
    let path = "";
    for (const row of ordered) {
      if (row.score <= best || row.warnings.length) continue;
      path += path ? `H${x(row[name])}V${y(row.score)}` : `M${x(row[name])} ${y(row.score)}`;
      best = row.score;
    }
    svg("path", { class: "front", d: `${path}H${width - edge.right}` }, picture);

    const placed = [];
    for (const row of ordered) {
      // What lies on another point steps aside, as far as a finger needs.
      let left = x(row[name]);
      const above = y(row.score);
      while (placed.some((other) => Math.abs(other.left - left) < 13 && Math.abs(other.above - above) < 13)) left += 14;
      placed.push({ left, above });
      const point = svg("g", {
        class: "point", tabindex: 0, role: "button", transform: `translate(${left} 0)`, "data-row": row.id,
        "aria-label": `${row.label}: ${table.metric} ${row.score_text} ${row.interval_text}${seeds(row)}, ${axis.name} ${axis.text(row[name])}. Show its row.`,
      }, picture);
      point.style.color = colour(row.method);
      if (row.low !== null) {
        svg("path", { class: "whisker", d: `M0 ${y(row.low)}V${y(row.high)}M-4 ${y(row.low)}h8M-4 ${y(row.high)}h8` }, point);
      }
      for (const seed of row.runs > 1 ? row.seeds.filter((one) => one.score !== null) : []) {
        svg("circle", { class: "seed", cx: 0, cy: y(seed.score), r: 3 }, point);
      }
      svg("circle", { class: "halo", cx: 0, cy: above, r: 12 }, point);
      svg("path", { class: "shape", d: shape(row.method), transform: `translate(0 ${above})` }, point);
      for (const event of ["mouseenter", "focus"]) point.addEventListener(event, () => showTip(point, row, table.metric));
      for (const event of ["mouseleave", "blur"]) point.addEventListener(event, hideTip);
      point.addEventListener("click", () => reveal(row.id));
      point.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        reveal(row.id);
      });
    }

    const legend = one("figcaption", figure);
    legend.replaceChildren();
    for (const method of methods.filter((known) => rows.some((row) => row.method === known))) {
      const entry = document.createElement("span");
      mark(method, entry);
      entry.append(method);
      legend.append(entry);
    }
    const front = document.createElement("span");
    const line = document.createElement("span");
    line.className = "dashed";
    const dots = rows.some((row) => row.runs > 1) ? ", over seeds too where dots show each seed" : "";
    front.append(line, `Pareto front; bars are 95 % intervals${dots}`);
    legend.append(front);
  };

  // ------------------------------------------------------------------------------------------- filters

  const form = document.getElementById("filters");
  form.hidden = false;
  const drawAll = () => {
    for (const table of data.tables) {
      const figure = one(`[data-chart="${table.id}"]`);
      if (!figure.parentNode.hidden) draw(figure, table, form.elements.axis.value);
    }
  };
  const apply = () => {
    const wanted = ["task", "backbone", "budget", "method"].map((name) => [name, form.elements[name].value]);
    let shown = 0;
    // What others published has no backbone or budget to choose by.
    for (const row of all("tr[data-task]")) {
      row.hidden = wanted.some(([name, value]) => value && row.dataset[name] && row.dataset[name] !== value);
      if (row.classList.contains("run")) {
        shown += row.hidden ? 0 : Number(row.dataset.runs);
        unfold(row, isOpen(row));
      }
    }
    const live = (place) => one("tr[data-task]:not([hidden])", place) !== null;
    all("tbody.paper").forEach((body) => { body.hidden = !live(body); });
    for (const section of all("section.group")) section.hidden = one("tr.run:not([hidden])", section) === null;
    all("[data-figure]").forEach((figure) => { figure.hidden = !live(figure); });
    all("section.published").forEach((section) => { section.hidden = !live(section); });
    form.elements.namedItem("count").textContent = shown === 1 ? "1 run" : `${shown} runs`;
    hideTip();
    drawAll();
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  // The form has its values back only after the event.
  form.addEventListener("reset", () => setTimeout(apply));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    hideTip();
    drawAll();
  });
  apply();
  if (/^#row-[\d-]+$/.test(location.hash) && one(location.hash)) reveal(location.hash.slice(1));
})();
