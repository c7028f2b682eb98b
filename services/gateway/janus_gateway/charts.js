// Pictures of the last minutes, drawn from differences of the counters that /api/activity gives.
const KEPT = 150, SPAN = 15, SVG = "http://www.w3.org/2000/svg";
const samples = [];

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
// Growth of one counter over all workers of a role between two samples; a worker that started again counts from zero.
function growth(before, after, role, name) {
  const old = new Map(before[role].map(w => [w.worker_id, w[name]]));
  return after[role].reduce((sum, w) => sum + (old.has(w.worker_id) && w[name] >= old.get(w.worker_id)
    ? w[name] - old.get(w.worker_id) : 0), 0);
}
function point(before, after) {
  const seconds = after.time - before.time, sum = (role, name) => growth(before, after, role, name);
  const steps = sum("attention", "steps"), each = name => steps ? 1000 * sum("attention", name) / steps : null;
  const exchange = each("exchange_seconds"), moe = each("moe_seconds");
  let passes = 0, reached = 0, bound = 0;
  after.layers.forEach((group, i) => {
    const old = before.layers[i];
    if (!old || group.passes < old.passes) return;
    passes += group.passes - old.passes; reached += group.a_max_sum - old.a_max_sum;
    bound += group.a_max_bound_sum - old.a_max_bound_sum;
  });
  return { output: sum("attention", "generated_tokens") / seconds, prompt: sum("attention", "prompt_tokens") / seconds,
    attention: each("attention_seconds"), moe: moe === null ? null : Math.min(moe, exchange),
    wire: moe === null ? null : Math.max(0, exchange - moe),
    reached: passes ? reached / passes : null, bound: passes ? bound / passes : null };
}
function neat(value) { return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2); }

// series: [name, class, value of a point]; stacked: each upon the last.
function chart(id, points, series, unit, stacked) {
  const width = 360, height = 110, box = $(id), shown = points.slice(-KEPT);
  const rows = series.map(([, , of]) => shown.map(of)), tops = shown.map((_, i) => stacked
    ? rows.reduce((sum, row) => sum + (row[i] || 0), 0) : Math.max(0, ...rows.map(row => row[i] || 0)));
  const most = Math.max(...tops, 1e-9) * 1.08, x = i => width * (KEPT - shown.length + i) / (KEPT - 1);
  const y = value => height - height * value / most, picture = svg("svg", { viewBox: `0 0 ${width} ${height}`,
    preserveAspectRatio: "none", role: "img", "aria-label": box.dataset.title });
  const below = shown.map(() => 0);
  rows.forEach((row, s) => {
    let path = "", base = [];
    const close = () => { if (stacked && base.length) path += base.reverse().map(p => "L" + p).join("") + "Z"; base = []; };
    row.forEach((value, i) => {
      if (value === null) { close(); return; }
      const from = stacked ? below[i] : 0, at = x(i).toFixed(1);
      path += (base.length ? "L" : "M") + at + "," + y(from + value).toFixed(1);
      base.push(at + "," + y(from).toFixed(1));
      if (stacked) below[i] += value;
    });
    close();
    picture.append(svg("path", { d: path || "M0,0", class: (stacked ? "area " : "line ") + series[s][1] }));
  });
  const legend = element("div", undefined, "legend");
  series.forEach(([name, cls], s) => {
    const now = rows[s].findLast(value => value !== null), item = element("span", undefined, cls);
    item.append(element("i"), name + " ", element("b", now === undefined ? "–" : neat(now) + unit));
    legend.append(item);
  });
  const title = element("h3", box.dataset.title);
  title.append(element("span", shown.length ? "up to " + neat(Math.max(...tops)) + unit : ""));
  box.replaceChildren(title, picture, legend);
}

// Experts across, MoE workers down: how many tokens each computed lately.
function heat(points) {
  const now = samples.at(-1), then = samples.at(-Math.min(samples.length, SPAN));
  const workers = now.moe.map(w => w.worker_id), made = [];
  now.layers.forEach((group, i) => {
    const old = then.layers[i], experts = Math.max(0, ...group.expert_tokens.map(row => row.length));
    const same = old && then.moe.length === workers.length && then.moe.every((w, r) => w.worker_id === workers[r]);
    const counts = group.expert_tokens.map((row, r) => row.map((count, e) =>
      Math.max(0, count - (same ? old.expert_tokens[r][e] || 0 : 0))));
    const most = Math.max(0, ...counts.flat()), cell = Math.max(3, Math.min(26, Math.floor(1040 / Math.max(1, experts))));
    const high = Math.max(8, Math.min(20, cell));
    const canvas = element("canvas");
    canvas.width = experts * cell; canvas.height = workers.length * high;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `tokens by expert and MoE worker, layers ${group.first} to ${group.last}`);
    const ink = canvas.getContext("2d"), colour = name => getComputedStyle($(name)).color;
    const [hot, none] = [colour("hot"), colour("none")];
    counts.forEach((row, r) => row.forEach((count, e) => {
      ink.globalAlpha = count ? .15 + .85 * Math.sqrt(count / most) : .06;
      ink.fillStyle = count ? hot : none;
      ink.fillRect(e * cell, r * high, cell - 1, high - 1);
    }));
    canvas.onmousemove = event => {
      const area = canvas.getBoundingClientRect();
      const e = Math.floor((event.clientX - area.left) * experts / area.width);
      const r = Math.floor((event.clientY - area.top) * workers.length / area.height);
      canvas.title = counts[r]?.[e] === undefined ? "" : `expert ${e} on ${workers[r]}: ${number.format(counts[r][e])} tokens`;
    };
    const layers = group.first === group.last ? `layer ${group.first}` : `layers ${group.first} to ${group.last}`;
    const part = element("figure");
    part.append(element("figcaption", `MoE ${layers}` + (most ? "" : ": no tokens lately")), canvas);
    made.push(part);
  });
  $("heat").replaceChildren(...made);
  $("heat-rows").textContent = workers.length ? `Rows: ${workers.join(", ")}. Columns: experts 0 to ` +
    `${Math.max(0, ...now.layers.map(g => Math.max(0, ...g.expert_tokens.map(row => row.length)))) - 1}. ` +
    "Stronger colour: more tokens in the last half minute." : "No MoE worker is in the cohort.";
}
function draw(found) {
  samples.push(found);
  if (samples.length > KEPT + 1) samples.shift();
  const points = samples.slice(1).map((sample, i) => point(samples[i], sample));
  chart("tokens", points, [["output", "c1", p => p.output], ["prompt", "c2", p => p.prompt]], "/s", false);
  chart("step", points, [["attention", "c1", p => p.attention], ["experts", "c2", p => p.moe],
    ["exchange", "c3", p => p.wire]], " ms", true);
  chart("amax", points, [["a_max", "c1", p => p.reached], ["lower bound", "c2", p => p.bound]], "", false);
  heat(points);
  const silent = found.silent.length ? `No answer from ${found.silent.join(", ")}.` : "";
  $("silent").textContent = silent;
}
