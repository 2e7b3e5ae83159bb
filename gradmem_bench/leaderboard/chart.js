"use strict";
// What needs no table: the look of a row, its details, and the chart of a table.
const chart = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, root = document) => root.querySelector(selector);
  const minus = (number) => String(number).replaceAll("-", "−");

  // ------------------------------------------------------------------------------------------- marks

  // A method is told by shape as well as by colour.
  const methods = [...new Set(data.tables.flatMap((table) => table.rows.map((row) => row.method)))].sort();
  const colours = ["#2583bd", "#d07a1f", "#2a9a72", "#b9609f", "#8b8a2b", "#cc5555", "#6a78d8", "#85817a"];
  const shapes = [
    "M0-6A6 6 0 1 1 0 6A6 6 0 1 1 0-6Z", "M-5.2-5.2H5.2V5.2H-5.2Z", "M0-6.5L6.5 5H-6.5Z", "M0-7.2L7.2 0L0 7.2L-7.2 0Z",
    "M0 6.5L6.5-5H-6.5Z", "M-2-6.5H2V-2H6.5V2H2V6.5H-2V2H-6.5V-2H-2Z", "M0-7L6.7-2.2L4.1 5.7H-4.1L-6.7-2.2Z",
    "M-6.5-3.2H6.5V3.2H-6.5Z",
  ];
  // From the ninth method on a colour comes again, with another shape.
  const colour = (method) => colours[methods.indexOf(method) % colours.length];
  const turns = (place) => place + Math.floor(place / colours.length);
  const shape = (method) => shapes[turns(methods.indexOf(method)) % shapes.length];
  const svg = (name, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.append(element);
    return element;
  };
  // Hollow: evaluated at another K than it was trained with.
  const outline = (row, above, parent) => {
    const hollow = row.inner_steps && row.inner_steps[0] !== row.inner_steps[1];
    const place = { d: shape(row.method), transform: `translate(0 ${above})` };
    svg("path", { class: hollow ? "shape hollow" : "shape", ...place }, parent);
    parent.style.color = colour(row.method);
  };
  const look = (row, above, parent) => {
    outline(row, above, parent);
    if (!row.inner_steps) return;
    svg("text", { class: "k", y: above + 3, "text-anchor": "middle" }, parent).textContent = row.inner_steps[1];
  };
  const picture = (parent) => svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, parent);
  // A row's name has its K in words where it needs it.
  for (const row of data.tables.flatMap((table) => table.rows)) outline(row, 0, picture(one(`#${row.id} .mark`)));

  // ------------------------------------------------------------------------------------------- tooltip

  const tip = document.getElementById("tip");
  const seeds = (row) => row.runs > 1
    ? `, seeds ${row.seeds.map((one) => `${one.seed}: ${minus(one.score?.toFixed(3) ?? "–")}`).join(", ")}` : "";
  const steps = (row) => {
    if (!row.inner_steps) return "";
    const [trained, evaluated] = row.inner_steps;
    return `, ${trained === evaluated ? `K ${trained}` : `trained with K ${trained}, evaluated at K ${evaluated}`}`;
  };
  const showTip = (point, row, metric) => {
    const interval = row.interval_text ? ` ${row.interval_text}` : "";
    const exact = row.bytes < 1024 ? "" : ` (${Math.round(row.bytes).toLocaleString("en")} bytes)`;
    const training = row.training_text === "–" ? "not trained" : row.training_text;
    tip.replaceChildren();
    const name = document.createElement("b");
    name.textContent = `${row.label}${steps(row)}`;
    tip.append(name, `${metric} ${row.score_text}${interval}${seeds(row)}`, document.createElement("br"),
      `state ${row.bytes_text}${exact}, READ ${row.positions_text} positions (${row.kv_text} of KV)`,
      document.createElement("br"),
      `WRITE ${row.write_text} ms, READ ${row.read_text} ms; ${training}`);
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
  const plain = (value) => minus(+value.toPrecision(3));
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

  // Rows, in the order of their places, by what stands within half a mark of the first of each heap.
  const heapsOf = (rows, place) => {
    const heaps = [];
    for (const row of rows) {
      const last = heaps[heaps.length - 1];
      if (last && place(row) - place(last[0]) < 7) last.push(row);
      else heaps.push([row]);
    }
    return heaps;
  };
  // As few lanes as keep marks and intervals off one another.
  const lanesOf = (rows, extents) => {
    const lanes = [];
    for (const row of rows) {
      const [top, bottom] = extents(row);
      const free = lanes.find((lane) => lane.every((other) => extents(other)[0] > bottom || extents(other)[1] < top));
      if (free) free.push(row);
      else lanes.push([row]);
    }
    return lanes;
  };

  const draw = (figure, table, name, anyK, reveal) => {
    const axis = axes[name];
    const live = table.rows.filter((row) => row.score !== null && !document.getElementById(row.id).hidden);
    const elsewhere = live.filter((row) => row.inner_steps && row.inner_steps[0] !== row.inner_steps[1]);
    const scored = anyK ? live : live.filter((row) => !elsewhere.includes(row));
    const rows = scored.filter((row) => row[name] !== null);
    figure.hidden = live.length === 0;
    const plot = one(".plot", figure);
    plot.replaceChildren();
    const legend = one("figcaption", figure);
    const left = elsewhere.length && !anyK
      ? `${elsewhere.length} evaluated at another K than trained with: not drawn` : "";
    legend.replaceChildren(rows.length ? "" : scored.length ? `${axis.name}: not measured for these runs` : left);
    if (!rows.length) return;
    const width = Math.max(260, plot.clientWidth);
    const height = Math.round(Math.min(360, Math.max(230, width * 0.42)));
    const edge = { left: 40, right: 18, top: 22, bottom: 42 };
    const plane = svg("svg", {
      viewBox: `0 0 ${width} ${height}`, width, height, role: "group",
      "aria-label": `${table.metric} against ${axis.name}, ${rows.length} points`,
    }, plot);
    const positive = rows.map((row) => row[name]).filter((value) => value > 0);
    const marks = positive.length ? ticks(positive, axis.base) : [1];
    // Zero has no place on a logarithmic axis, and gets one of its own before it.
    const zero = rows.some((row) => row[name] <= 0) ? 64 : 0;
    const start = edge.left + zero + 12;
    const span = Math.log(marks[marks.length - 1] / marks[0]) || 1;
    const x = (value) => value <= 0 ? edge.left + 30
      : start + (width - edge.right - 12 - start) * (Math.log(value / marks[0]) / span);
    // A task's own metric may be any number; all others are shares.
    const ends = rows.flatMap((row) => [row.score, row.low ?? row.score, row.high ?? row.score]);
    const bottom = Math.min(0, ...rows.map((row) => row.score));
    const top = rows.every((row) => row.score <= 1) ? 1 : Math.max(...ends);
    const y = (value) => edge.top + (height - edge.top - edge.bottom) * (1 - (value - bottom) / (top - bottom));
    const text = (content, left, top, anchor = "middle") => {
      svg("text", { x: left, y: top, "text-anchor": anchor }, plane).textContent = content;
    };
    for (const value of [0, 0.25, 0.5, 0.75, 1].map((share) => bottom + share * (top - bottom))) {
      svg("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value) }, plane);
      text(plain(value), edge.left - 7, y(value) + 4, "end");
    }
    text(table.metric, 4, 11, "start");
    if (zero) text("0", x(0), height - edge.bottom + 18);
    const enough = width / marks.length < 56 ? 2 : 1;
    marks.forEach((value, index) => {
      svg("line", { class: "grid", x1: x(value), x2: x(value), y1: y(0), y2: y(0) + 5 }, plane);
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
    svg("path", { class: "front", d: `${path}H${width - edge.right}` }, plane);

    const heaps = heapsOf(ordered, (row) => x(row[name]));
    const centres = heaps.map((heap) => heap.reduce((sum, row) => sum + x(row[name]), 0) / heap.length);
    const places = new Map();
    let bands = 0;
    heaps.forEach((heap, index) => {
      const extents = (row) => [
        Math.min(y(row.high ?? row.score), y(row.score) - 7), Math.max(y(row.low ?? row.score), y(row.score) + 7),
      ];
      const lanes = lanesOf(heap.sort((a, b) => b.score - a.score), extents);
      const centre = centres[index];
      const gaps = [centres[index - 1], centres[index + 1]].filter((other) => other !== undefined);
      const ends = [2 * (centre - edge.left), 2 * (width - edge.right - centre)];
      const room = 0.8 * Math.min(...gaps.map((other) => Math.abs(other - centre)), ...ends);
      const step = Math.min(14, room / lanes.length);
      lanes.forEach((lane, side) => lane.forEach((row) => {
        places.set(row, lanes.length > 1 ? centre + (side - (lanes.length - 1) / 2) * step : x(row[name]));
      }));
      if (lanes.length === 1) return;
      bands += 1;
      const wide = Math.max(lanes.length * step, 6);
      const band = { x: centre - wide / 2, y: edge.top, width: wide, height: height - edge.top - edge.bottom };
      plane.prepend(svg("rect", { class: "band", ...band }));
    });

    for (const row of ordered) {
      const above = y(row.score);
      const point = svg("g", {
        class: document.getElementById(row.id).matches(".dimmed") ? "point dimmed" : "point", tabindex: 0,
        role: "button", transform: `translate(${places.get(row)} 0)`, "data-row": row.id,
        "aria-label": `${row.label}${steps(row)}: ${table.metric} ${row.score_text} ${row.interval_text}${seeds(row)}, `
          + `${axis.name} ${axis.text(row[name])}. Show its row.`,
      }, plane);
      if (row.low !== null) {
        const [low, high] = [y(row.low), y(row.high)];
        svg("path", { class: "whisker", d: `M0 ${low}V${high}M-4 ${low}h8M-4 ${high}h8` }, point);
      }
      for (const seed of row.runs > 1 ? row.seeds.filter((one) => one.score !== null) : []) {
        svg("circle", { class: "seed", cx: 0, cy: y(seed.score), r: 3 }, point);
      }
      svg("circle", { class: "halo", cx: 0, cy: above, r: 12 }, point);
      look(row, above, point);
      for (const event of ["mouseenter", "focus"]) {
        point.addEventListener(event, () => showTip(point, row, table.metric));
      }
      for (const event of ["mouseleave", "blur"]) point.addEventListener(event, hideTip);
      point.addEventListener("click", () => reveal(row.id));
      point.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        reveal(row.id);
      });
    }

    const entries = new Map();
    for (const row of rows.filter((row) => !elsewhere.includes(row))) {
      entries.set(`${row.method}${row.inner_steps ? `, K ${row.inner_steps[1]}` : ""}`, row);
    }
    const ranked = [...entries].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
    if (anyK && elsewhere.length) {
      ranked.push(["hollow: evaluated at another K, the number, than trained with", elsewhere[0]]);
    }
    for (const [text, row] of ranked) {
      const entry = document.createElement("span");
      look(row, 0, picture(entry));
      entry.append(text);
      legend.append(entry);
    }
    const say = (sign, text) => {
      const entry = document.createElement("span");
      if (sign) entry.append(Object.assign(document.createElement("span"), { className: sign }));
      entry.append(text);
      legend.append(entry);
    };
    const dots = rows.some((row) => row.runs > 1) ? ", over seeds too where dots show each seed" : "";
    say("dashed", `Pareto front; bars are 95 % intervals${dots}`);
    const about = heaps.some((heap) => heap.some((row) => row[name] !== heap[0][name])) ? "about " : "";
    if (bands) say("swatch", `what costs ${about}the same stands side by side on a band`);
    if (left) say("", left);
  };

  return { data, draw, hideTip };
})();
